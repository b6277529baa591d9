"""What jobs ask for: no less than what was measured, and sane for models that this machine could not hold."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from twohop.config import BEFORE_CARD, ModelSize, Params, load_params, needs, parse_params, read_size
from twohop.steps._names import STEPS

TOP = Path(__file__).parents[2]
GPU_MB = 81920
SMOL = ModelSize(parameters=200_000_000, d_model=576, n_layers=30, vocab=49_152, n_image_tokens=16)
B7 = ModelSize(parameters=7_063_427_072, d_model=4096, n_layers=32, vocab=32_064, n_image_tokens=576)
B70 = ModelSize(parameters=70_600_000_000, d_model=8192, n_layers=80, vocab=128_256, n_image_tokens=576)
MEASURED_MB = {
    "prepare_model": 2019,
    "run_benchmark": 1792,
    "extract_activations": 1846,
    "score_attribution": 2653,
    "patch_activations": 2081,
    "train_probes": 589,
    "measure_resolution": 1681,
    "recover_recall": 2092,
}
"""Peak memory on the default study in MiB."""
ON_MODELS = sorted(set(MEASURED_MB) - {"prepare_model", "train_probes"})


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(TOP / "params.yaml")


@pytest.mark.parametrize(("step", "peak"), MEASURED_MB.items())
def test_default_study_gets_what_was_measured_and_not_twice_as_much(params: Params, step: str, peak: int) -> None:
    assert 1.1 * peak <= needs(step, params, SMOL).mem_mb <= 2 * peak


def test_default_study_fits_the_machine_that_the_readme_names(params: Params) -> None:
    assert 2 * max(needs(step, params, SMOL).mem_mb for step in MEASURED_MB) < 8000


@pytest.mark.parametrize("step", ON_MODELS)
def test_7b_fits_one_gpu(params: Params, step: str) -> None:
    found = needs(step, params, B7, threads=8, gpu_mb=GPU_MB)
    assert found.gpu == 1
    assert 13_500 < found.mem_mb < 32_000  # 13.2 GiB of bfloat16 weights pass through
    assert 10 <= found.runtime <= 120


@pytest.mark.parametrize("step", ON_MODELS)
def test_70b_needs_several_gpus(params: Params, step: str) -> None:
    found = needs(step, params, B70, threads=8, gpu_mb=GPU_MB)
    assert 3 <= found.gpu <= 8
    assert 135_000 < found.mem_mb < 250_000


def test_attribution_needs_more_than_a_forward_pass(params: Params) -> None:
    small_gpu = 24_000
    for size in (SMOL, B7, B70):
        attribution, benchmark = (needs(s, params, size) for s in ("score_attribution", "run_benchmark"))
        assert attribution.mem_mb > benchmark.mem_mb
    attribution, benchmark = (needs(s, params, B7, gpu_mb=small_gpu) for s in ("score_attribution", "run_benchmark"))
    assert attribution.gpu > benchmark.gpu


def test_without_gpus_weights_are_float32_in_the_jobs_memory(params: Params) -> None:
    found = needs("extract_activations", params, B7)
    assert found.gpu == 0
    assert found.mem_mb * 2**20 > 4 * B7.parameters


@pytest.mark.parametrize("step", ["prepare_model", "train_probes", "gather_shards"])
def test_what_opens_no_model_asks_for_no_gpu(params: Params, step: str) -> None:
    assert needs(step, params, B70, gpu_mb=GPU_MB).gpu == 0


def test_batch_image_tokens_and_threads_count(params: Params) -> None:
    tree = params.model_dump()
    tree["extract_activations"] |= {"batch": 64}
    doubled = parse_params(tree, "test")
    step = "extract_activations"
    assert needs(step, doubled, B7).mem_mb > needs(step, params, B7).mem_mb
    assert needs(step, params, replace(B7, n_image_tokens=0)).mem_mb < needs(step, params, B7).mem_mb
    assert needs(step, params, B7, threads=8).runtime < needs(step, params, B7, threads=1).runtime


def test_shards_share_the_time(params: Params) -> None:
    tree = params.model_dump()
    tree["extract_activations"] |= {"shards": 8}
    shared = parse_params(tree, "test")
    whole, shard = (needs("extract_activations", p, B7) for p in (params, shared))
    assert shard.runtime < whole.runtime / 4
    assert shard.mem_mb == whole.mem_mb


def test_card_is_read_and_its_absence_is_not_an_error(tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    assert read_size(card) == BEFORE_CARD
    card.write_text(json.dumps({**asdict(B7), "name": "other keys do not matter"}))
    assert read_size(card) == B7
    card.write_text("{")
    assert read_size(card) == BEFORE_CARD


def test_every_step_that_opens_a_model_is_known() -> None:
    text = "".join(p.read_text() for p in (TOP / "workflow/rules").glob("*.smk"))
    for step in STEPS:
        opens = "open_model" in (TOP / f"src/twohop/steps/{step}.py").read_text()
        assert not opens or f'needs_of("{step}", "mem_mb")' in text


def test_number_format_of_the_entry_counts(params: Params, tmp_path: Path) -> None:
    half = replace(B7, width=2)
    plain, small = (needs("run_benchmark", params, size).mem_mb for size in (B7, half))
    assert 0.45 < small / plain < 0.6
    assert (
        needs("run_benchmark", params, replace(B7, width=4), gpu_mb=16384).gpu
        > needs("run_benchmark", params, B7, gpu_mb=16384).gpu
    )
    card = tmp_path / "card.json"
    for dtype, width in (("auto", None), ("bfloat16", 2), ("float32", 4)):
        numbers = {k: v for k, v in asdict(B7).items() if k != "width"}
        card.write_text(json.dumps({**numbers, "entry": {"loading": {"dtype": dtype}}}))
        assert read_size(card) == replace(B7, width=width)
