"""A bundle is read and verified by people who have neither the repository nor the package."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from twohop.report import check_bundle
from twohop.store import ActivationReader, sha256_file

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(1500)]
MODEL = "tiny-vlm"
EXAMPLE = "read_activations.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundled_once(finished_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled") / "bundle"
    finished_once.run("twohop", "bundle", MODEL, "-o", str(folder), check=True)
    return folder


@pytest.fixture
def bundled(finished_once: Any, bundled_once: Path, tmp_path: Path) -> tuple[Any, Path]:
    """The study (to look at only), and a bundle of its own somewhere else."""
    shutil.copytree(bundled_once, tmp_path / "elsewhere" / "bundle")
    return finished_once, tmp_path / "elsewhere" / "bundle"


def _alone(folder: Path, *code: str) -> "subprocess.CompletedProcess[str]":
    """Python without this package: isolated mode, and a site that only has h5py and numpy."""
    site = folder.parent / "site"
    if not site.exists():
        site.mkdir()
        for package in (h5py, np):
            source = Path(package.__file__).parent
            for found in source.parent.glob(f"{source.name}*"):
                (site / found.name).symlink_to(found)
    start = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p] + [sys.argv.pop(1)]\n"
    words = [sys.executable, "-I", "-S", "-c", start + "\n".join(code), str(site)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("run", "kind", "group", "layer"), [("text", "mlp_write", "entity", 1), ("pictures", "resid_post", "last", -1)]
)
def test_reader_example_gives_what_the_store_gives(
    bundled: tuple[Any, Path], run: str, kind: str, group: str, layer: int
) -> None:
    tree, folder = bundled
    done = _alone(
        folder,
        "import runpy, numpy, importlib.util",
        "assert importlib.util.find_spec('twohop') is None",
        f"values = runpy.run_path({EXAMPLE!r})['read']('activations.h5', {run!r}, {kind!r}, {group!r}, {layer})",
        "numpy.save('../values.npy', values)",
    )
    assert done.returncode == 0, done.stderr
    with ActivationReader(tree.root / f"results/extract_activations/{MODEL}/activations.h5") as reader:
        expected = reader.read(run, kind, group, layer)
    read = np.load(folder.parent / "values.npy", allow_pickle=False)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, expected)


def test_reader_example_runs_as_it_is(bundled: tuple[Any, Path]) -> None:
    _, folder = bundled
    done = _alone(folder, "import runpy", f"runpy.run_path({EXAMPLE!r}, run_name='__main__')")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
    assert "Consider the following country" in done.stdout


def test_docs_and_bundle_hold_the_very_file(bundled: tuple[Any, Path]) -> None:
    _, folder = bundled
    example = (ROOT / "src/twohop/store" / EXAMPLE).read_text()
    assert (folder / EXAMPLE).read_text() == example
    for page in (ROOT / "docs/remote.md", folder / "README.md"):
        assert f"```python\n{example.strip()}\n```" in page.read_text()


def test_sha256sum_verifies_without_us(bundled: tuple[Any, Path]) -> None:
    _, folder = bundled
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("no sha256sum on this machine")
    subprocess.run([program, "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"SHA256SUMS"}


@pytest.mark.parametrize(
    "name", ["activations.h5", "card.json", "lineage.json", "questions.json", "ancestors/fetch_images.json"]
)
def test_check_names_the_file_with_a_flipped_byte(bundled: tuple[Any, Path], name: str) -> None:
    _, folder = bundled
    assert check_bundle(folder) == []
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert check_bundle(folder) == [f"{name}: its bytes differ from its sha256"]


def test_check_names_missing_and_added_files(bundled: tuple[Any, Path]) -> None:
    tree, folder = bundled
    assert "good" in tree.run("twohop", "bundle", "--check", str(folder), check=True).stdout
    (folder / "card.json").unlink()
    (folder / "notes.txt").write_text("mine")
    done = tree.run("twohop", "bundle", "--check", str(folder))
    assert done.returncode == 2
    assert "card.json: missing" in done.stderr
    assert "notes.txt: not in SHA256SUMS" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_refuses_activations_of_another_run(bundled: tuple[Any, Path]) -> None:
    """Checksums that fit, but a file that the lineage record does not speak of."""
    tree, folder = bundled
    other = tree.root / "results/extract_activations/tiny-control/activations.h5"
    shutil.copyfile(other, folder / "activations.h5")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in lines if not line.endswith("  activations.h5")]
    (folder / "SHA256SUMS").write_text("\n".join([*kept, f"{sha256_file(other)}  activations.h5", ""]))
    assert check_bundle(folder) == ["activations.h5: it is not the one of lineage.json"]


def test_refused_bundle_leaves_nothing(finished: Any, tmp_path: Path) -> None:
    source = finished.root / f"results/extract_activations/{MODEL}/activations.h5"
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    done = finished.run("twohop", "bundle", MODEL, "-o", str(tmp_path / "out" / "bundle"))
    assert done.returncode == 2
    assert "activations.h5" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_partial_clone_is_told_what_to_pull(finished: Any, tmp_path: Path) -> None:
    finished.run("dvc", "remote", "modify", "store", "url", str(tmp_path / "store"), check=True)
    finished.run("twohop", "push", check=True)
    finished.run("git", "clone", "-q", ".", str(tmp_path / "clone"), check=True)
    clone = replace(finished, root=tmp_path / "clone")
    shutil.copy(finished.root / ".dvc/config", clone.root / ".dvc/config")
    here = [f"{stage}@{MODEL}" for stage in ("extract_activations", "build_questions", "prepare_model")]
    clone.run("twohop", "pull", *here, check=True)
    told = clone.run("twohop", "bundle", MODEL)
    assert told.returncode == 2
    assert "lineage records are not here: curate_entities fetch_images" in told.stderr
    clone.run(*told.stderr.rsplit("do:", 1)[1].split(), check=True)
    clone.run("twohop", "bundle", MODEL, check=True)
    assert (clone.root / "bundles" / MODEL / "README.md").exists()


def test_backbone_has_no_pictures(finished_once: Any, tmp_path: Path) -> None:
    finished_once.run("twohop", "bundle", "tiny-llm", "-o", str(tmp_path / "bundle"), check=True)
    assert (tmp_path / "bundle/pictures.json").read_text() == "[]\n"
    assert "was shown none" in (tmp_path / "bundle/README.md").read_text()
