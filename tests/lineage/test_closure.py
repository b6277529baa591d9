"""What a step depends on, read from import statements."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from twohop.errors import TwohopError
from twohop.lineage import closure, project_closure, source_root
from twohop.steps._names import STEPS


def _names(module: str, *, loaded: bool = False) -> set[str]:
    return {str(f).removeprefix("twohop/") for f in closure(module, loaded=loaded)}


def test_a_re_export_leads_to_the_defining_module_only() -> None:
    found = _names("twohop.steps.curate_entities")
    assert {"steps/curate_entities.py", "steps/_step.py", "store/_tables.py", "store/_atomic.py", "errors.py"} <= found
    assert not any(f.startswith(("models/", "analysis/", "figures/")) for f in found)
    assert "store/__init__.py" not in found


def test_a_step_with_a_model_depends_on_the_models_room() -> None:
    assert "models/_model.py" in _names("twohop.steps.run_benchmark")
    assert "steps/_run.py" not in _names("twohop.steps.run_benchmark")


def test_data_files_of_a_room_belong_to_its_users() -> None:
    assert "figures/twohop.mplstyle" in _names("twohop.steps.plot_figures")
    assert "figures/twohop.mplstyle" not in _names("twohop.steps.train_probes")


@pytest.mark.parametrize("step", ["curate_entities", "train_probes"])
def test_loaded_closure_covers_what_an_import_really_loads(step: str) -> None:
    code = (
        f"import sys, twohop.steps.{step}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'twohop'), sep='\\n')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    really = {str(Path(line).resolve().relative_to(source_root())) for line in out.splitlines()}
    assert really <= {str(f) for f in closure(f"twohop.steps.{step}", loaded=True)}


@pytest.mark.parametrize("step", STEPS)
def test_every_listed_step_is_a_module_with_a_declaration(step: str) -> None:
    assert importlib.util.find_spec(f"twohop.steps.{step}")
    assert f"steps/{step}.py" in _names(f"twohop.steps.{step}")


def test_a_package_from_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TwohopError, match="outside this project"):
        project_closure("twohop.steps.train_probes", tmp_path)
