"""What a stage of dvc.yaml is asked to make."""

from pathlib import Path

import pytest

from twohop.errors import TwohopError
from twohop.lineage._stage import outputs_of

PIPELINE = """
stages:
  one: {cmd: x, outs: [results/one/a.txt, {results/one/b.txt: {cache: false}}], metrics: [results/one/m.json]}
  many: {matrix: {model: [m-1, m-2]}, cmd: x, outs: ["results/many/${item.model}/a.txt"]}
  mixed: {foreach: {m-1: {input0: f}}, do: {cmd: x, outs: ["results/mixed/${key}/a.txt"]}}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    return tmp_path / "dvc.yaml"


@pytest.mark.parametrize(
    ("rule", "model", "outputs"),
    [
        ("one", None, ["results/one/a.txt", "results/one/b.txt", "results/one/m.json"]),
        ("many", "m-2", ["results/many/m-2/a.txt"]),
        ("mixed", "m-1", ["results/mixed/m-1/a.txt"]),
    ],
)
def test_outputs_of_a_stage(pipeline: Path, rule: str, model: str | None, outputs: list[str]) -> None:
    assert outputs_of(rule, model, pipeline) == outputs


@pytest.mark.parametrize(("rule", "model"), [("none", None), ("one", "m-1"), ("many", None), ("many", "m-3")])
def test_unknown_stages_are_refused(pipeline: Path, rule: str, model: str | None) -> None:
    with pytest.raises(TwohopError, match="no stage"):
        outputs_of(rule, model, pipeline)
