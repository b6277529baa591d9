"""Metrics, statistics, attribution, patching, probes: tensors and frames in, results out; no files, no models."""

from twohop.analysis._atp_star import AttentionLayer, Drop, attribute_star
from twohop.analysis._attribution import Attribution, Contrast, Node, Runner, attribute, group_scores, patch_nodes
from twohop.analysis._degradation import degradation, pair_answers, recognised, two_by_two
from twohop.analysis._grading import first_line, grade, words
from twohop.analysis._interventions import Intervention, SiteName, digest_of
from twohop.analysis._lens import LensFit, Translator, candidate_tokens, fit_translator
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
from twohop.analysis._profile_intervals import depth_intervals, likeness_intervals
from twohop.analysis._profiles import agreement, compare_profiles, correlate, select_run, summarise_run
from twohop.analysis._recovery import beside_patch, closed_share, continue_with, cut_name
from twohop.analysis._resolution import (
    Depth,
    Readings,
    curve,
    depth_difference,
    headline_readouts,
    layers_of_windows,
    name_hits,
    order_agreement,
    permutation_p,
    resolution_depth,
    spread,
)
from twohop.analysis._sampling import stratified_sample
from twohop.analysis._statistics import Interval, accuracy, bootstrap, entity_sums, holm, mcnemar, ratio, share, wilson

__all__ = [
    "AttentionLayer",
    "Attribution",
    "Contrast",
    "Depth",
    "Drop",
    "Interval",
    "Intervention",
    "LensFit",
    "Node",
    "Pair",
    "Planner",
    "Probe",
    "Readings",
    "Runner",
    "SiteName",
    "SpanScores",
    "TrainingSet",
    "Translator",
    "accuracy",
    "agreement",
    "attribute",
    "attribute_star",
    "beside_patch",
    "bootstrap",
    "candidate_tokens",
    "choose_pair",
    "closed_share",
    "compare_profiles",
    "continue_with",
    "correlate",
    "curve",
    "cut_name",
    "degradation",
    "depth_difference",
    "depth_intervals",
    "digest_of",
    "entity_sums",
    "first_line",
    "first_near_maximum",
    "fit_probe",
    "fit_translator",
    "grade",
    "group_scores",
    "headline_readouts",
    "holm",
    "layers_of_windows",
    "likeness_intervals",
    "mcnemar",
    "name_hits",
    "order_agreement",
    "pair_answers",
    "patch_nodes",
    "patching_sets",
    "permutation_p",
    "picture_folds",
    "ratio",
    "recognised",
    "resolution_depth",
    "sample_sets",
    "select_run",
    "share",
    "shuffle_labels",
    "span_mask",
    "spread",
    "stratified_sample",
    "summarise_outcomes",
    "summarise_run",
    "two_by_two",
    "wilson",
    "windows",
    "words",
    "wrong_donors",
]
