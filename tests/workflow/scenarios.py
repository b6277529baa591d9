"""What happens between the two engines, scenario by scenario, on the tiny study with the real Snakemake and DVC.

Each scenario gets a tree that nobody else uses, asserts what must hold, and returns in a few words what either engine
said. The tests run the quick ones; `make engines-check` runs all and prints the table.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conftest import Tree, commit

NOTHING = "Nothing to be done"
CLEAN = "up to date"
PROBES = {"train_probes", "plot_figures", "render_report"}
L2 = ("params.yaml", "l2: [0.1]", "l2: [0.2]")
WAIT_S = 180


@dataclass(frozen=True)
class Trees:
    """Where scenarios get their trees from."""

    finished: Callable[[], Tree]
    """A copy of the tiny study after `snakemake --cores all`."""
    fresh: Callable[[], Tree]
    """A copy before anything has run."""
    seed: int = 0


Said = tuple[str, str]
Scenario = Callable[[Trees], Said]


def both_clean(tree: Tree) -> None:
    """Neither engine has anything to do."""
    assert tree.planned() == set()
    assert tree.changed_stages() == set()


def ran(text: str) -> set[str]:
    """Rules that a Snakemake run has finished."""
    return set(re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", text)) - {"all"}


def contents(tree: Tree) -> dict[str, bytes]:
    """Everything below results/ that does not tell of a run's time or name."""
    names = ("lineage.json", "report.html")
    files = (p for p in (tree.root / "results").rglob("*") if p.is_file() and p.name not in names)
    return {str(p.relative_to(tree.root)): p.read_bytes() for p in files}


def wait_for(folder: Path) -> None:
    """Until a job has begun."""
    end = time.monotonic() + WAIT_S
    while not (folder.exists() and any(p.is_file() for p in folder.rglob("*"))):
        assert time.monotonic() < end
        time.sleep(0.1)


def uncached(tree: Tree) -> list[str]:
    """Outputs of dvc.lock that DVC's cache lacks."""
    import yaml

    lock = yaml.safe_load((tree.root / "dvc.lock").read_text())["stages"]
    outs = [o for name, s in lock.items() if name != "hash_code" for o in s["outs"]]
    cache = tree.root / ".dvc/cache/files/md5"
    return [o["path"] for o in outs if not (cache / o["md5"][:2] / o["md5"][2:]).exists()]


# --- agreement --------------------------------------------------------------------------------------------------------


def scratch_snakemake(trees: Trees) -> Said:
    """From scratch with `snakemake`: DVC has everything, without computing."""
    tree = trees.fresh()
    done = ran(tree.snakemake())
    assert len(done) == 12
    both_clean(tree)
    assert uncached(tree) == []
    return f"ran {len(done)} rules", f"{CLEAN}, all in the cache"


def scratch_dvc(trees: Trees) -> Said:
    """From scratch with `dvc repro`: models in parallel, then Snakemake has nothing to do."""
    tree = trees.fresh()
    text = tree.run("dvc", "repro", check=True)
    side_by_side = overlapping(tree)
    assert side_by_side >= (2 if len(os.sched_getaffinity(0)) > 1 else 1)
    both_clean(tree)
    cached = (text.stdout + text.stderr).count("is cached - skipping run")
    return NOTHING, f"ran all; {cached} of 23 stages made ahead, {side_by_side} jobs at once"


def overlapping(tree: Tree) -> int:
    """Most jobs that ran at the same time, by their records."""
    from datetime import datetime

    edges: list[tuple[float, int]] = []
    for path in (tree.root / "results").rglob("lineage.json"):
        record = json.loads(path.read_text())
        start = datetime.fromisoformat(record["started"]).timestamp()
        edges += [(start, 1), (start + record["seconds"], -1)]
    most = now = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


def param_snakemake(trees: Trees) -> Said:
    """A changed parameter, then `snakemake`."""
    tree = trees.finished()
    tree.edit(*L2)
    assert tree.changed_stages() == {"train_probes@tiny-vlm", "train_probes@tiny-control"}
    done = ran(tree.snakemake())
    assert done == PROBES
    both_clean(tree)
    return f"ran {', '.join(sorted(done))}", CLEAN


def param_dvc(trees: Trees) -> Said:
    """A changed parameter, then `dvc repro`, then back again."""
    tree = trees.finished()
    tree.edit(*L2)
    assert tree.planned() == PROBES
    text = tree.run("dvc", "repro", check=True).stdout
    touched = set(re.findall(r"(?:Running stage|Stage) '(\w+)[^']*'(?::| is cached)", text))
    assert touched == PROBES
    both_clean(tree)
    tree.edit(L2[0], L2[2], L2[1])
    back = tree.run("dvc", "repro", check=True)
    both_clean(tree)
    cached = (back.stdout + back.stderr).count("is cached - skipping run")
    return NOTHING, f"ran {', '.join(sorted(touched))}; back: {cached} from the run cache"


def code_change(trees: Trees) -> Said:
    """A module that only the probes import is changed."""
    tree = trees.finished()
    with (tree.root / "src/twohop/analysis/_probing.py").open("a") as file:
        file.write("\n\nEDITED = 1\n")
    assert tree.planned() >= {"train_probes"}
    planned = tree.planned()
    assert not planned & {"extract_activations", "run_benchmark", "score_attribution", "patch_activations"}
    text = tree.run("dvc", "repro", check=True).stdout
    touched = set(re.findall(r"(?:Running stage|Stage) '(\w+)[^']*'(?::| is cached)", text)) - {"hash_code"}
    assert touched == planned
    both_clean(tree)
    return f"would run {', '.join(sorted(planned))}", "ran the same, and hash_code"


def comment_change(trees: Trees) -> Said:
    """Comments and docstrings are changed in a module that many steps import."""
    tree = trees.finished()
    for path in ("src/twohop/store/_atomic.py", "src/twohop/models/_model.py"):
        text = (tree.root / path).read_text()
        assert text.startswith('"""')
        (tree.root / path).write_text(text.replace('"""', '"""Reworded. ', 1) + "\n# a remark\n")
    assert tree.planned() == set()
    text = tree.run("dvc", "repro", check=True).stdout
    assert set(re.findall(r"Running stage '(\w+)", text)) == {"hash_code"}
    both_clean(tree)
    tree.edit("src/twohop/store/_atomic.py", "a remark", "another remark")
    assert NOTHING in tree.snakemake()
    both_clean(tree)
    return NOTHING, "hash_code only (one second)"


def library_change(trees: Trees) -> Said:
    """An upgraded library: recorded only, until a setting makes it a reason to run."""
    tree = trees.finished()
    tree.edit("params.yaml", "rerun_on_versions: []", "rerun_on_versions: [matplotlib]")
    tree.run("twohop", "write_dvc", check=True)
    planned = tree.planned()
    assert "plot_figures" in planned or planned == set()
    versions = json.loads((tree.root / "workflow/code.json").read_text())
    stages = re.findall(r"^  (\w+):$", (tree.root / "dvc.yaml").read_text(), re.M)  # those that a run makes by default
    uses = {step for step in stages if "matplotlib" in versions.get(step, {})}
    assert uses
    assert planned >= uses
    return f"would run {', '.join(sorted(planned)) or 'nothing'}", f"{len(uses)} steps carry the version"


# --- clones -----------------------------------------------------------------------------------------------------------


def clone(trees: Trees, *pull: str, link: str = "copy") -> tuple[Tree, Tree]:
    """A good tree with a pushed store, and a fresh clone that has pulled from it."""
    good = trees.finished()
    store = good.root.parent / f"store-{link}"
    good.run("dvc", "remote", "modify", "store", "url", str(store), check=True)
    commit(good)
    good.run("dvc", "push", check=True)
    other = Tree(good.root.parent / f"clone-{link}")
    good.run("git", "clone", "-q", ".", str(other.root), check=True)
    other.run("dvc", "config", "--local", "cache.type", link, check=True)
    other.run("dvc", "pull", *pull, check=True)
    return good, other


def fresh_clone(link: str) -> Scenario:
    """The scenario of one link type."""

    def scenario(trees: Trees) -> Said:
        if link == "reflink" and not _has_reflinks():
            return "-", "not tried: this disk has no reflinks"
        _, tree = clone(trees, link=link)
        both_clean(tree)
        assert NOTHING in tree.snakemake()
        tree.edit(*L2)
        assert tree.planned() == PROBES
        assert {s.split("@")[0] for s in tree.changed_stages()} == {"train_probes"}
        assert ran(tree.snakemake()) == PROBES
        both_clean(tree)
        cache = tree.root / ".dvc/cache/files/md5"
        assert not _altered(cache), "a cache object was written through a link"
        return f"{NOTHING}; later change noticed", f"{CLEAN}; later change noticed"

    scenario.__doc__ = f"Fresh clone and `dvc pull`, links by {link}; then a changed parameter."
    return scenario


def _has_reflinks() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a").write_text("x")
        words = ["cp", "--reflink=always", f"{folder}/a", f"{folder}/b"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _altered(cache: Path) -> list[str]:
    """Cache objects whose bytes are not what their names say."""
    import hashlib

    files = (p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".dir") and not p.name.startswith("."))
    return [p.name for p in files if hashlib.md5(p.read_bytes()).hexdigest() != p.parent.name + p.name]


def partial_pull(trees: Trees) -> Said:
    """Only one model's activations are pulled: its analysis runs alone; an upstream change is told."""
    _, tree = clone(trees, "extract_activations@tiny-vlm")
    target = "results/train_probes/tiny-vlm/metrics.json"
    here = {p.parent.name for p in (tree.root / "results").rglob("*.h5")}
    assert here == {"tiny-vlm"}
    assert ran(tree.snakemake(target)) == {"train_probes"}
    assert not (tree.root / "results/fetch_images").exists()
    assert tree.run("dvc", "status", "train_probes@tiny-vlm", check=True).stdout.strip().endswith("up to date.")
    tree.edit("params.yaml", "size_px: 32", "size_px: 48")
    told = tree.snakemake("-n", target)
    assert "extract_activations@tiny-vlm: not up to date" in told
    assert "fetch_images.size_px: 32 -> 48" in told
    assert "extract_activations" in _planned_in(told)
    tree.edit("params.yaml", "size_px: 48", "size_px: 32")
    assert NOTHING in tree.snakemake("-n", target)
    return "ran train_probes alone; upstream change: not trusted, with the reason", CLEAN


def partial_dvc(trees: Trees) -> Said:
    """The same pull, then the analysis by `dvc repro`."""
    _, tree = clone(trees, "extract_activations@tiny-vlm")
    tree.edit(*L2)
    text = tree.run("dvc", "repro", "--allow-missing", "train_probes@tiny-vlm", check=True).stdout
    assert set(re.findall(r"Running stage '([\w@-]+)'", text)) == {"train_probes@tiny-vlm"}
    assert NOTHING in tree.snakemake("-n", "results/train_probes/tiny-vlm/metrics.json")
    return NOTHING, "ran train_probes@tiny-vlm alone"


def _planned_in(text: str) -> set[str]:
    table = text.rsplit("Job stats:", 1)[1].split("\n\n", 1)[0] if "Job stats:" in text else ""
    return {line.split()[0] for line in table.splitlines()[3:]} - {"all", "total"}


def branch_switch(trees: Trees) -> Said:
    """`git switch` and `dvc checkout` between two results."""
    tree = trees.finished()
    tree.run("git", "switch", "-qc", "other", check=True)
    tree.edit(*L2)
    tree.snakemake()
    commit(tree)
    for branch in ("-", "other"):
        tree.run("git", "switch", "-q", branch, check=True)
        tree.run("dvc", "checkout", check=True)
        both_clean(tree)
    return NOTHING, CLEAN


# --- faults -----------------------------------------------------------------------------------------------------------


def tampered(trees: Trees) -> Said:
    """A file is altered in place, its size and time kept: `twohop sync` finds it, the next run mends it."""
    tree = trees.finished()
    curves = tree.root / "results/train_probes/tiny-vlm/curves.parquet"
    good, times = curves.read_bytes(), curves.stat()
    data = bytearray(good)
    data[len(data) // 2] ^= 1
    curves.write_bytes(data)
    os.utime(curves, ns=(times.st_atime_ns, times.st_mtime_ns))
    told = tree.run("twohop", "sync", check=True).stdout
    row = next(line for line in told.splitlines() if line.startswith("train_probes@tiny-vlm"))
    assert "altered" in row
    assert "marked to run again" in row
    assert "train_probes" in ran(tree.snakemake())
    assert curves.read_bytes() == good
    both_clean(tree)
    return "sync: altered, marked; next run mended it", CLEAN


def failed_job(trees: Trees) -> Said:
    """A step fails: what was finished is in DVC, nothing half-made is left, the next run does the rest."""
    tree = trees.finished()
    tree.edit(*L2)
    path = "src/twohop/report/_page.py"
    text = (tree.root / path).read_text()
    (tree.root / path).write_text(text + "\nraise RuntimeError('broken on purpose')\n")
    failed = tree.run("snakemake", "--cores", "all")
    assert failed.returncode != 0
    assert not (tree.root / "results/render_report/report.html").exists()
    assert {s.split("@")[0] for s in tree.changed_stages()} <= {"render_report"}
    (tree.root / path).write_text(text)
    assert ran(tree.snakemake()) == {"render_report"}
    both_clean(tree)
    return "failed; next run: render_report only", "finished stages were committed"


def crash_snakemake(trees: Trees) -> Said:
    """`snakemake` is killed 20 times at random moments (KILL, TERM, INT); the same command ends with the same bytes."""
    return _crash(trees, ["snakemake", "--cores", "all"], 20)


def crash_dvc(trees: Trees) -> Said:
    """`dvc repro` is killed 5 times at random moments (KILL, TERM, INT)."""
    return _crash(trees, ["dvc", "repro"], 5)


def _crash(trees: Trees, words: list[str], n: int) -> Said:
    want = contents(trees.finished())
    tree, draw = trees.fresh(), random.Random(trees.seed)
    killed = 0
    while killed < n:
        run = tree.start(*words)
        time.sleep(draw.uniform(2, 14))
        if run.poll() is None:
            _hit(run, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[killed % 3])
            killed += 1
        else:  # it was faster than that: from the beginning again
            assert run.returncode == 0, "the same command right after a kill was refused"
            shutil.rmtree(tree.root / "results")
        run.wait(120)
    tree.run(*words, check=True)
    assert contents(tree) == want
    assert tree.run("snakemake", "--cores", "all", check=True)
    both_clean(tree)
    assert not list((tree.root / "results").rglob(".*.tmp"))
    return f"{n} kills, then the same bytes; {NOTHING}", CLEAN


def _hit(run: "subprocess.Popen[bytes]", what: signal.Signals) -> None:
    """One process, as `kill` does; with INT its whole group, as Ctrl-C does."""
    if what == signal.SIGINT:
        os.killpg(run.pid, what)
    else:
        run.send_signal(what)


def two_at_once(trees: Trees) -> Said:
    """A second run beside the first, each way round: a clear refusal, nothing changed."""
    tree = trees.finished()
    now = "[0.1]"
    for first, new in ((["snakemake", "--cores", "all"], "[0.2]"), (["dvc", "repro"], "[0.3]")):
        tree.edit("params.yaml", f"l2: {now}", f"l2: {new}")
        now = new
        shutil.rmtree(tree.root / ".snakemake/incomplete", ignore_errors=True)
        run = tree.start(*first)
        wait_for(tree.root / ".snakemake/incomplete")
        for second in (["snakemake", "--cores", "all"], ["dvc", "repro"]):
            done = tree.run(*second)
            assert done.returncode != 0
            assert re.search(r"(process|PID) \d+", done.stderr + done.stdout), done.stderr
            assert "Traceback" not in done.stderr
        assert run.wait(600) == 0
        both_clean(tree)
    return "refused: another run works here: process N", "refused: busy, PID N"


def full_disk(trees: Trees) -> Said:
    """The disk fills up in the middle (a small tmpfs): told, nothing half-written kept, mended by the same command."""
    tree = trees.finished()
    folder = tree.root / "results/extract_activations/tiny-vlm"
    target = "results/extract_activations/tiny-vlm/activations.h5"
    shutil.rmtree(folder)
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False)
    if mounted.returncode:
        return "not tried: mounting needs root", "-"
    try:
        failed = tree.run("snakemake", "--cores", "all", target)
        assert failed.returncode != 0
        assert "the disk is full" in failed.stderr + failed.stdout
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)
    tree.snakemake(target)
    assert ran(tree.snakemake()) <= {"render_report"}  # which names the run that made each file
    both_clean(tree)
    return "the disk is full; the same command went on", CLEAN


# --- experiments ------------------------------------------------------------------------------------------------------


def experiment(trees: Trees) -> Said:
    """`dvc exp run -S`, and what differs, by `dvc params diff`, `metrics diff`, `plots diff`."""
    tree = trees.finished()
    commit(tree)
    done = tree.run("dvc", "exp", "run", "-S", "train_probes.l2=0.5", check=True)
    assert "Ran experiment" in done.stdout
    params = tree.run("dvc", "params", "diff", check=True).stdout
    assert "train_probes.l2" in params
    metrics = tree.run("dvc", "metrics", "diff", "--all", check=True).stdout
    assert "headline.json" in metrics
    plots = tree.run("dvc", "plots", "diff", "HEAD", check=True).stdout
    assert "index.html" in plots
    assert tree.planned() == set()
    return NOTHING, "exp run, params diff, metrics diff, plots diff work"


def all_scenarios() -> Iterator[Scenario]:
    """In the order of the table."""
    yield from (scratch_snakemake, scratch_dvc, param_snakemake, param_dvc, code_change, comment_change, library_change)
    for link in ("copy", "hardlink", "symlink", "reflink"):
        yield fresh_clone(link)
    yield from (partial_pull, partial_dvc, branch_switch, tampered, failed_job, two_at_once, full_disk)
    yield from (crash_snakemake, crash_dvc, experiment)
