"""What DVC thinks of a stage, with the reasons: content against dvc.lock, nothing is run and nothing is locked.

A file that is not here (a partial pull) is no reason by itself. But when what would make it has changed, the stage that
once read it rests on something that is gone: that is a reason, and it is told from where it comes.
"""
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from twohop.errors import TwohopError
from twohop.lineage._check import differences
from twohop.lineage._code import CODE_FILE

_CUT = 60
"""Longest text of a value in a reason."""


@dataclass(frozen=True)
class Verdict:
    """DVC's view of one stage."""

    stage: str
    locked: bool
    """dvc.lock knows all of its outputs."""
    present: bool
    """All of its outputs are here."""
    reasons: tuple[str, ...]
    """Why it is not up to date; empty when it is."""
    partial: bool
    """Something that it was made from is not here."""


@contextlib.contextmanager
def dvc_repo() -> Generator[Any]:
    """The working directory's DVC repository, under DVC's own lock.

    Raises:
        TwohopError: DVC refuses something; its words, and what to do.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            yield repo
    except DvcException as error:
        raise TwohopError(f"DVC: {error}", str(Path.cwd()), "mend it, then run `twohop sync`") from error


def stages_in_order(repo: Any) -> list[Any]:
    """The pipeline's stages, producers before consumers."""
    import networkx as nx

    return [s for s in nx.dfs_postorder_nodes(repo.index.graph) if getattr(s, "addressing", None)]


def stage_of(repo: Any, address: str) -> Any:
    """The stage with an address.

    Raises:
        TwohopError: dvc.yaml has none.
    """
    for stage in repo.index.stages:
        if stage.addressing == address:
            return stage
    raise TwohopError(f"it has no stage {address}", "dvc.yaml", "run `twohop write_dvc`, then `twohop sync`")


def judge(repo: Any) -> dict[str, Verdict]:
    """A verdict for every stage, producers first."""
    found: dict[str, Verdict] = {}
    makers = {out.fs_path: stage for stage in repo.index.stages for out in stage.outs}
    for stage in stages_in_order(repo):
        found[stage.addressing] = _verdict(stage, makers, found)
    return found


def _verdict(stage: Any, makers: Mapping[str, Any], found: Mapping[str, Verdict]) -> Verdict:
    locked = bool(stage.outs) and all(out.hash_info for out in stage.outs)
    absent = [dep for dep in stage.deps if not dep.exists]
    reasons: list[str] = [] if locked else ["not in dvc.lock"]
    if locked:
        reasons += ["its command changed"] if stage.changed_stage() else []
        reasons += ["it always runs (hash_code.rerun_on_versions)"] if stage.always_changed else []
        for dep in stage.deps:
            reasons += _lost(dep, makers, found) if dep in absent else _changed(dep)
        reasons += [f"output {out} differs from dvc.lock" for out in stage.outs if out.exists and out.status()]
    partial = any(dep in absent or _is_partial(dep, makers, found) for dep in stage.deps)
    return Verdict(stage.addressing, locked, all(o.exists for o in stage.outs), tuple(dict.fromkeys(reasons)), partial)


def _is_partial(dep: Any, makers: Mapping[str, Any], found: Mapping[str, Verdict]) -> bool:
    maker = makers.get(dep.fs_path)
    return maker is not None and found[maker.addressing].partial


def _changed(dep: Any) -> Iterator[str]:
    if not hasattr(dep, "params"):
        if dep.status():
            yield f"input {dep} changed"
        return
    then: Any = dep.hash_info.value or {}
    now = dep.read_params(flatten=False)
    for key in dep.params:
        before, after = _at(then, key), _at(now, key)
        if str(dep) == str(CODE_FILE):
            yield from _code_reasons(key, before, after)
        else:
            yield from (f"param {at}: {_short(a)} -> {_short(b)}" for at, a, b in differences(before, after, key))


def _code_reasons(step: str, before: Any, after: Any) -> Iterator[str]:
    for name, a, b in differences(before or {}, after or {}, ""):
        yield f"code of {step} changed" if name == "code" else f"library {name}: {a} -> {b}"


def _short(text: str) -> str:
    return text if len(text) <= _CUT else text[: _CUT - 3] + "..."


def _lost(dep: Any, makers: Mapping[str, Any], found: Mapping[str, Verdict]) -> Iterator[str]:
    """An input that is not here: fine, unless what makes it has changed."""
    maker = makers.get(dep.fs_path)
    if maker is None:
        yield f"input {dep} is gone"
        return
    why = found[maker.addressing].reasons
    if why:
        first = why[0] if why[0].startswith("through ") else f"through {maker.addressing}: {why[0]}"
        yield first + (f" (and {len(why) - 1} more)" if len(why) > 1 else "")
    elif any(out.fs_path == dep.fs_path and out.hash_info != dep.hash_info for out in maker.outs):
        yield f"input {dep} was made again by {maker.addressing}"


def _at(tree: Any, key: str) -> Any:
    """The value at a dotted key; dvc.lock and `read_params` hold it flat or nested."""
    if not isinstance(tree, Mapping):
        return None
    table = cast("Mapping[str, Any]", tree)
    if key in table:
        return table[key]
    head, _, rest = key.partition(".")
    return _at(table.get(head), rest) if rest else None


def rehash(stages: Iterable[Any]) -> list[str]:
    """Compare every output that is here with dvc.lock by reading its bytes, also where DVC believes to know its hash.

    A file that is not what DVC believes gets a new time, so that both engines look again. Returns such files.
    """
    from dvc_data.hashfile.hash import file_md5

    wrong: list[str] = []
    for out in (o for s in stages for o in s.outs if o.hash_info and o.exists and not o.hash_info.isdir):
        path = Path(out.fs_path)
        if file_md5(str(path), out.fs) != out.hash_info.value:
            path.touch()
            wrong.append(str(path.relative_to(Path.cwd())))
    return wrong
