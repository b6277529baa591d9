"""Metrics, statistics, attribution, patching, probes: tensors and frames in, results out; no files, no models."""

from twohop.analysis._attribution import Attribution, Contrast, Runner, attribute, group_scores, patch_nodes
from twohop.analysis._degradation import degradation, pair_answers, recognised, two_by_two
from twohop.analysis._grading import first_line, grade, words
from twohop.analysis._interventions import Intervention, SiteName, digest_of
from twohop.analysis._outcomes import choose_pair, summarise_outcomes
from twohop.analysis._patching import (
    Pair,
    Planner,
    SpanScores,
    patching_sets,
    sample_sets,
    span_mask,
    windows,
    wrong_donors,
)
from twohop.analysis._probing import Probe, TrainingSet, first_near_maximum, fit_probe, picture_folds, shuffle_labels
from twohop.analysis._profiles import compare_profiles, correlate, select_run, summarise_run
from twohop.analysis._recovery import beside_patch, closed_share, continue_with, cut_name
from twohop.analysis._sampling import stratified_sample
from twohop.analysis._statistics import Interval, accuracy, bootstrap, entity_sums, holm, mcnemar, ratio, share, wilson

__all__ = [
    "Attribution",
    "Contrast",
    "Interval",
    "Intervention",
    "Pair",
    "Planner",
    "Probe",
    "Runner",
    "SiteName",
    "SpanScores",
    "TrainingSet",
    "accuracy",
    "attribute",
    "beside_patch",
    "bootstrap",
    "choose_pair",
    "closed_share",
    "compare_profiles",
    "continue_with",
    "correlate",
    "cut_name",
    "degradation",
    "digest_of",
    "entity_sums",
    "first_line",
    "first_near_maximum",
    "fit_probe",
    "grade",
    "group_scores",
    "holm",
    "mcnemar",
    "pair_answers",
    "patch_nodes",
    "patching_sets",
    "picture_folds",
    "ratio",
    "recognised",
    "sample_sets",
    "select_run",
    "share",
    "shuffle_labels",
    "span_mask",
    "stratified_sample",
    "summarise_outcomes",
    "summarise_run",
    "two_by_two",
    "wilson",
    "windows",
    "words",
    "wrong_donors",
]
