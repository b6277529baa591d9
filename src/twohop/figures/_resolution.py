"""The resolution depths in the summary: one per model and method, how far the methods agree, and over models."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from twohop.analysis._resolution import order_agreement, spread
from twohop.figures._study import Study

Record = dict[str, Any]
METHODS = {
    "logit_lens": "logit lens",
    "tuned_lens": "tuned lens",
    "patchscope": "Patchscopes",
    "knockout": "attention knockout",
}
"""Method in the tables: how it is called."""


def resolve(study: Study, model: str) -> Record:
    """methods -> depth (None: nothing is read) with its test and best value; readouts -> every other; differences."""
    table = study.depths[model]
    rows = list(table.filter(pl.col("versus").is_null()).iter_rows(named=True))
    methods = {r["method"]: _depth(study, model, r) for r in rows if r["headline"]}
    pairs = table.filter(pl.col("versus").is_not_null()).iter_rows(named=True)
    return {
        "methods": methods,
        "readouts": [{"method": r["method"], "readout": r["readout"], **_depth(study, model, r)} for r in rows],
        "differences": {f"{r['method']} - {r['versus']}": _interval(r) for r in pairs},
        "spread": spread({m: d["value"] for m, d in methods.items()}),
    }


def _interval(row: Mapping[str, Any]) -> Record:
    return {"value": row["depth"], "low": row["low"], "high": row["high"], "n_entities": row["n"]}


def _depth(study: Study, model: str, row: Mapping[str, Any]) -> Record:
    points = study.resolution[model].filter(method=row["method"], readout=row["readout"])
    best = points.sort("value", "layer", descending=[True, False]).row(0, named=True)
    return {
        **_interval(row),
        "readout": row["readout"],
        "layer": row["layer"],
        "p_value": row["p_value"],
        "best": {k: best[k] for k in ("value", "low", "high", "chance", "layer")},
    }


def order_of_depths(study: Study) -> Record:
    """Pair of methods -> Kendall's tau of their depths over the VLMs (with two: 1 same order, -1 opposite)."""
    found = {m: resolve(study, m)["methods"] for m in study.names("vlm") if m in study.depths}
    names = [n for n in METHODS if any(n in methods for methods in found.values())]
    result: Record = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            first, second = ([methods.get(n, {}).get("value") for methods in found.values()] for n in (a, b))
            tau, n_models = order_agreement(first, second)
            result[f"{a} - {b}"] = {"tau": tau, "n_models": n_models}
    return result
