"""Metrics, statistics, attribution, patching, probes: tensors and frames in, results out; no files, no models."""

from twohop.analysis._attribution import Attribution, Contrast, Runner, attribute, group_scores, patch_nodes
from twohop.analysis._degradation import degradation, pair_answers, recognised, two_by_two
from twohop.analysis._grading import first_line, grade, words
from twohop.analysis._patching import (
    Pair,
    Plan,
    Planner,
    SpanScores,
    choose_pair,
    patching_sets,
    sample_sets,
    span_mask,
    summarise_outcomes,
    wrong_donors,
)
from twohop.analysis._probing import (
    Probe,
    TrainingSet,
    first_near_maximum,
    fit_probes,
    layers_at_once,
    picture_folds,
    resolution,
    selectivity,
    shuffle_labels,
)
from twohop.analysis._profiles import compare_profiles, correlate, select_run, summarise_run
from twohop.analysis._recovery import closed_share, continue_with, cut_name
from twohop.analysis._sampling import stratified_sample
from twohop.analysis._statistics import Interval, accuracy, bootstrap, entity_sums, holm, mcnemar, ratio, share, wilson

__all__ = [
    "Attribution",
    "Contrast",
    "Interval",
    "Pair",
    "Plan",
    "Planner",
    "Probe",
    "Runner",
    "SpanScores",
    "TrainingSet",
    "accuracy",
    "attribute",
    "bootstrap",
    "choose_pair",
    "closed_share",
    "compare_profiles",
    "continue_with",
    "correlate",
    "cut_name",
    "degradation",
    "entity_sums",
    "first_line",
    "first_near_maximum",
    "fit_probes",
    "grade",
    "group_scores",
    "holm",
    "layers_at_once",
    "mcnemar",
    "pair_answers",
    "patch_nodes",
    "patching_sets",
    "picture_folds",
    "ratio",
    "recognised",
    "resolution",
    "sample_sets",
    "select_run",
    "selectivity",
    "share",
    "shuffle_labels",
    "span_mask",
    "stratified_sample",
    "summarise_outcomes",
    "summarise_run",
    "two_by_two",
    "wilson",
    "words",
    "wrong_donors",
]
