"""The command line as a user meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from twohop.steps._names import STEPS


def _twohop(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "twohop", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_help_lists_every_step_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom twohop.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', {'torch', 'transformers', 'polars', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "HEAVY set()" in out
    for step in STEPS:
        assert f"\n    {step}" in out


@pytest.mark.parametrize(
    ("step", "heavy"),
    [
        ("curate_entities", {"torch", "transformers"}),
        ("fetch_images", {"torch", "transformers"}),
        ("plot_figures", {"transformers"}),
        ("render_report", {"transformers"}),
    ],
)
def test_steps_without_a_model_import_no_library_of_models(step: str, heavy: set[str]) -> None:
    """torch comes with `twohop.analysis`, of which the figures take the statistics."""
    code = f"import sys, twohop.cli, twohop.steps._run, twohop.steps.{step}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not (heavy | {"snakemake", "dvc"}) & set(out.split())


def test_b01_a_bad_file_gives_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("models: {}\n")
    done = _twohop("check_params", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_in_a_project_its_own_source_is_used(tmp_path: Path) -> None:
    package = tmp_path / "src/twohop"
    (package / "cli").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys; print('own', sys.argv[1:])")
    (package / "cli/__init__.py").touch()
    assert _twohop("lineage", "x", cwd=tmp_path).stdout == "own ['lineage', 'x']\n"


def test_a01_check_of_an_empty_project_finds_no_fault(tmp_path: Path) -> None:
    done = _twohop("lineage", "check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0 artifacts are what their records say\n")
