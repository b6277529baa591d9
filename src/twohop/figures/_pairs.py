"""Are two VLMs of one language model told apart, and by which instrument? (study, section 7; the calibration pair)

Every difference is paired: a draw of entities is the same for both models.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from twohop.analysis._pairs import loss_difference, paired_depths
from twohop.analysis._profile_intervals import centre_difference
from twohop.analysis._resolution import Curves, Rule
from twohop.analysis._statistics import Interval
from twohop.figures._resolution import METHODS, resolve
from twohop.figures._study import Study

Record = dict[str, Any]
FEATURE = "image_last"
INSTRUMENTS = {
    "degradation": "relative degradation",
    "attribution": "centre of the MLPs' attribution at the picture",
    "probes": "depth at which the probe is near its best",
    **METHODS,
}
"""What is compared: how it is called."""
_RULES: dict[str, Rule] = {"knockout": "half_of_sum"}


def compare_pairs(study: Study, paired: dict[str, pl.DataFrame], n_boot: int, seed: int) -> list[Record]:
    """Per pair of VLMs with one backbone: instrument -> first minus second with its interval; `apart`: it excludes 0.

    Args:
        study: the tables.
        paired: model -> its paired answers (`twohop.analysis.pair_answers`).
        n_boot: bootstrap draws over entities.
        seed: of the draws.
    """
    vlms = [m for m in study.names("vlm") if m in paired]
    pairs = [(a, b) for i, a in enumerate(vlms) for b in vlms[i + 1 :] if study.backbone(a) == study.backbone(b)]
    return [{"first": a, "second": b, "by": _by_instrument(study, paired, a, b, n_boot, seed)} for a, b in pairs]


def _by_instrument(
    study: Study, paired: dict[str, pl.DataFrame], a: str, b: str, n_boot: int, seed: int
) -> dict[str, Record]:
    found = {"degradation": loss_difference(paired[a], paired[b], n_boot, seed)}
    if a in study.question_scores and b in study.question_scores:
        layers, tables = (study.n_layers(a), study.n_layers(b)), study.question_scores
        found["attribution"] = centre_difference(tables[a], tables[b], "image", layers, n_boot, seed)
    if a in study.predictions and b in study.predictions:
        style = study.held_out()[0]
        curves = (_probed(study, a, style), _probed(study, b, style))
        if all(len(c[0]) for c in curves):
            found["probes"] = paired_depths(*curves, "near_maximum", n_boot, seed)
    records = {name: _verdict(interval) for name, interval in found.items()}
    if all(m in study.readings and m in study.depths for m in (a, b)):
        records |= {m: _resolved(study, m, (a, b), n_boot, seed) for m in METHODS}
    return records


def _verdict(interval: Interval) -> Record:
    known = interval.low is not None and interval.high is not None
    apart = interval.low > 0 or interval.high < 0 if known else None  # type: ignore[operator]
    return {**interval.record(), "apart": apart}


def _probed(study: Study, model: str, style: str) -> Curves:
    table = study.predictions[model].filter(feature=FEATURE, test_style=style)
    return _curves(table, "correct", study.n_layers(model))


def _curves(table: pl.DataFrame, column: str, n_layers: int) -> Curves:
    """Sums of a column by entity and layer, both ascending."""
    wide = table.with_columns(pl.col(column).cast(pl.Float64)).pivot(
        "layer", index="entity_id", values=column, aggregate_function="sum"
    )
    layers = sorted(int(c) for c in wide.columns if c != "entity_id")
    values: Float[np.ndarray, "entity layer"] = wide.sort("entity_id").select(map(str, layers)).to_numpy()
    return values, layers, n_layers


def _resolved(study: Study, method: str, models: tuple[str, str], n_boot: int, seed: int) -> Record:
    """Difference of the method's depths; `reads` names the models in which it reads anything."""
    depths = [resolve(study, m)["methods"].get(method) for m in models]
    reads = [m for m, d in zip(models, depths, strict=True) if d and d["value"] is not None]
    if len(reads) < len(models):
        return {**_verdict(Interval(None, None, None, 0)), "reads": reads}
    tables = [
        study.readings[m].filter(method=method, readout=d["readout"]) for m, d in zip(models, depths, strict=True) if d
    ]
    shared = sorted(set(tables[0]["entity_id"]) & set(tables[1]["entity_id"]))
    first, second = (
        _curves(t.filter(pl.col("entity_id").is_in(shared)), "value", study.n_layers(m))
        for t, m in zip(tables, models, strict=True)
    )
    rule = _RULES.get(method, "near_maximum")
    return {**_verdict(paired_depths(first, second, rule, n_boot, seed)), "reads": reads}
