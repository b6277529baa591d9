"""The answer says what the numbers say, no more."""

import copy

import pytest

from twohop.report import find


def recall_row(summary, model, value, low, high, p):
    row = summary["degradation"][model]["a,c"]["all"]["all"]
    row.update(degradation={"value": value, "low": low, "high": high}, p_value=p, p_holm=p)


@pytest.fixture
def changed(summary):
    return copy.deepcopy(summary)


def test_a_clear_loss_is_a_yes(changed):
    recall_row(changed, "late", 0.5, 0.3, 0.7, 0.001)
    recall_row(changed, "early", 0.4, 0.2, 0.6, 0.001)
    assert find(changed)[0].verdict == "Yes for late and early"


@pytest.mark.parametrize(("low", "p"), [(-0.1, 0.001), (0.0, 0.001), (0.1, 0.2), (0.1, None), (None, 0.001)])
def test_an_interval_with_zero_or_a_large_p_is_no_yes(changed, low, p):
    recall_row(changed, "late", 0.5, 0.3, 0.7, 0.001)
    recall_row(changed, "early", 0.2, low, 0.4, p)
    assert find(changed)[0].verdict == "Yes for late; not shown for early"


def test_a_gain_is_no_loss(changed):
    for model in ("late", "early"):
        recall_row(changed, model, -0.5, -0.7, -0.3, 0.001)
    finding = find(changed)[0]
    assert finding.verdict == "Not shown for late and early"
    assert "the interval lies below zero" in finding.sentences[0]


def test_few_entities_are_named(changed):
    assert "only 12 entities" in find(changed)[0].sentences[0]


def test_models_differ_only_when_their_intervals_do_not_overlap(changed):
    recall_row(changed, "late", 0.5, 0.4, 0.7, 0.001)
    recall_row(changed, "early", 0.1, 0.0, 0.3, 0.2)
    assert "do not overlap for late and early" in find(changed)[0].sentences[-1]
    recall_row(changed, "early", 0.3, 0.2, 0.5, 0.2)
    assert "do not show that the models differ" in find(changed)[0].sentences[-1]


def test_repair_needs_an_interval_above_zero(changed):
    for model in ("late", "early"):
        changed["patching"][model]["heuristic_minus_random"] = {"value": 0.1, "low": -0.1, "high": 0.3}
        for strategy in changed["recovery"][model].values():
            strategy["closed"] = {"value": 0.2, "low": -0.1, "high": 0.5}
    assert find(changed)[2].verdict == "No repair is shown by these data"
    changed["patching"]["late"]["heuristic_minus_random"] = {"value": 0.3, "low": 0.1, "high": 0.5}
    assert find(changed)[2].verdict == "In part: patching repairs more than its control in late"
    changed["recovery"]["early"]["two_turns"]["closed"] = {"value": 0.5, "low": 0.2, "high": 0.9}
    assert "the prompt “two turns” in early" in find(changed)[2].verdict


def test_the_true_name_is_an_oracle_and_no_repair(changed):
    for model in ("late", "early"):
        changed["patching"][model]["heuristic_minus_random"] = {"value": None, "low": None, "high": None}
        for strategy in changed["recovery"][model].values():
            strategy["closed"] = {"value": None, "low": None, "high": None}
        changed["recovery"][model]["oracle_name"]["closed"] = {"value": 1.0, "low": 0.8, "high": 1.2}
    assert find(changed)[2].verdict == "No repair is shown by these data"


def test_no_lost_fact_is_said(changed):
    changed["patching"]["late"]["n_lost"] = 0
    assert "late: no fact that its language model knows is lost" in " ".join(find(changed)[2].sentences)


def test_depth_comes_from_the_held_out_style(changed):
    changed["probes"]["late"]["noto_original"]["image_last"]["resolved_depth"]["value"] = 0.25
    changed["probes"]["late"]["1x1"]["image_last"]["resolved_depth"]["value"] = 0.75
    assert "late: by 25 % [" in find(changed)[1].verdict


def test_nothing_measured_is_said(changed):
    bare = {
        **changed,
        "probes": {},
        "resolution": {},
        "patching": {},
        "recovery": {},
        "attribution": {},
        "told_apart": [],
    }
    assert [f.verdict for f in find(bare)[1:]] == ["Not measured", "Not measured"]


def test_repair_puts_patch_and_prompts_side_by_side(summary):
    sentences = find(summary)[2].sentences
    (late,) = [s for s in sentences if s.startswith("late, the same 12 lost facts")]
    assert "the patch brings back" in late
    assert "“two turns” brings back" in late
    assert "true name" not in late
    (patched,) = [s for s in sentences if s.startswith("late: writing")]
    assert "are without a patch (difference" in patched
    assert "changes the right answer's log-probability by" in patched


def depths_of(summary, model, *intervals):
    """Give a model's methods these (low, high) intervals, and its language model's recall a centre at half depth."""
    methods = summary["resolution"][model]["methods"]
    for method, found in zip(methods.values(), intervals, strict=True):
        low, high = found or (None, None)
        found_at = None if found is None else (low + high) / 2
        method.update(value=found_at, low=low, high=high)
    summary["attribution"]["lm"]["text"]["mlp_centre_entity"] = {"value": 0.5, "low": 0.48, "high": 0.52}


def said_of(summary, model):
    (sentence,) = [s for s in find(summary)[1].sentences if s.startswith(f"{model}: by four methods")]
    return sentence


def test_too_late_is_said_only_when_every_interval_shows_it(changed):
    depths_of(changed, "late", (0.6, 0.9), (0.7, 1.0), None, (0.8, 0.9))
    assert "too late to reuse it" in said_of(changed, "late")
    assert "Patchscopes undefined (reads no name above chance)" in said_of(changed, "late")
    depths_of(changed, "late", (0.6, 0.9), (0.4, 1.0), None, (0.8, 0.9))
    assert "intervals do not agree" in said_of(changed, "late")
    depths_of(changed, "late", (0.0, 0.2), (0.1, 0.4), (0.0, 0.0), (0.2, 0.3))
    assert "early enough to reuse it" in said_of(changed, "late")


def test_no_depth_is_no_verdict(changed):
    depths_of(changed, "early", None, None, None, None)
    assert "reuse it" not in said_of(changed, "early")
    depths_of(changed, "early", (0.6, 0.9), None, None, None)
    changed["resolution"]["early"]["methods"]["logit_lens"].update(low=None, high=None)
    assert "too few data" in said_of(changed, "early")


def apart_of(summary, **differences):
    """Give instruments these (low, high) intervals."""
    by = {k: {"value": (a + b) / 2, "low": a, "high": b, "apart": a > 0 or b < 0} for k, (a, b) in differences.items()}
    summary["told_apart"] = [{"first": "late", "second": "early", "by": by}]
    return find(summary)[3]


def test_the_pair_is_told_apart_only_by_intervals_without_zero(changed):
    found = apart_of(changed, degradation=(-0.1, 0.2), probes=(0.2, 0.4))
    assert found.verdict == "late and early: yes, by depth at which the probe is near its best"
    assert "it does not for relative degradation +5 % [-10, 20]" in found.sentences[0]
    assert apart_of(changed, probes=(-0.2, 0.4)).verdict == "late and early: not shown by any instrument"


def test_instruments_that_disagree_are_named(changed):
    found = apart_of(changed, degradation=(-0.3, -0.2), probes=(0.2, 0.4), attribution=(-0.2, -0.1))
    assert "disagree: by depth at which the probe is near its best late is the later one" in found.sentences[-1]
    assert "disagree" not in " ".join(apart_of(changed, degradation=(-0.3, -0.2), probes=(0.2, 0.4)).sentences)


def test_a_method_that_reads_one_model_alone_makes_no_difference(changed):
    found = apart_of(changed, probes=(0.2, 0.4))
    pair = changed["told_apart"][0]["by"]
    pair["patchscope"] = {"value": None, "low": None, "high": None, "apart": None, "reads": ["early"]}
    found = find(changed)[3]
    assert "Patchscopes (only early)" in found.sentences[1]
    assert "Patchscopes" not in found.verdict
