"""Answers of the lineage commands as lines of text."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from twohop.lineage import Cause, Change, Difference, Node, Record
from twohop.provenance._ancestry import Ancestry, FactSource, ModelFacts, Picture
from twohop.provenance._inputs import Found

FEW = 3
"""Pictures that `view` tells of unless all are asked for."""
_SHORT = 8
_FILES = 4


def run_lines(records: Sequence[Record]) -> Iterator[str]:
    """One line per run: id, when, step, model, how long, commit, artifacts."""
    width = max((len(r.step) for r in records), default=0)
    names = max((len(r.model or "-") for r in records), default=0)
    for r in records:
        written = [Path(o.path).name for o in r.outputs]
        files = ", ".join(written[:_FILES]) + (f" and {len(written) - _FILES} more" if len(written) > _FILES else "")
        head = f"{r.run_id[:_SHORT]}  {_when(r)}  {r.step:{width}}  {r.model or '-':{names}}"
        yield f"{head}  {r.seconds:8.1f} s  {_commit(r)}  {files}"


def _when(record: Record) -> str:
    return record.started[:16].replace("T", " ")


def _commit(record: Record) -> str:
    return f"{(record.commit or 'no commit')[:10]}{' + edits' if record.dirty else ''}"


def view_lines(found: Ancestry, show_all: bool = False) -> Iterator[str]:
    """The walk back as a tree."""
    yield _title(found)
    for alike, group in groupby(found.nodes, key=_merged):
        nodes = list(group)
        if alike:
            seen = "; ".join(f"{_names(n)} of {n.record.run_id[:_SHORT]}" for n in nodes if n.record)
            yield f"{_pad(nodes[0])}also {seen}"
        else:
            yield from (line for node in nodes for line in _node_lines(found, node, show_all))


def _merged(node: Node) -> int:
    """Neighbours that stand further up share a line; 0 for a node with lines of its own."""
    return node.depth if node.again and not node.notes else 0


def _pad(node: Node) -> str:
    return "  " * (node.depth + 1)


def _node_lines(found: Ancestry, node: Node, show_all: bool) -> Iterator[str]:
    pad = _pad(node)
    yield f"{pad}{_node(node)}"
    yield from (f"{pad}  ! {note}" for note in node.notes)
    if node.record is not None and not node.again:
        yield from (f"{pad}  {line}" for line in _ends(found, node.record, show_all))


def _title(found: Ancestry) -> str:
    target = found.target
    if target.output is None:
        return f"run {target.record.run_id}"
    path = target.output.path
    if target.pointer is None:
        return f"{path}  ({target.output.bytes} bytes, sha256 {target.output.sha256[:12]})"
    interval = "  interval [{:.4g}, {:.4g}]".format(*found.interval) if found.interval else ""
    return f"{found.value}{interval}  at {target.pointer} of {path}"


def _names(node: Node) -> str:
    return ", ".join(dict.fromkeys(Path(f.path).name for f in node.files))


def _node(node: Node) -> str:
    names = _names(node)
    if node.record is None:
        (item,) = node.files
        return f"{item.path}  (a file of the repository, sha256 {item.sha256[:12]})"
    r = node.record
    head = f"{names} <- " if names else ""
    who = " ".join(filter(None, (r.step, r.model)))
    if node.again:
        return f"{head}{who}  run {r.run_id[:_SHORT]}  (see above)"
    return f"{head}{who}  run {r.run_id[:_SHORT]}  {_when(r)}  commit {_commit(r)}  params {r.params_sha256[:8]}"


def _ends(found: Ancestry, record: Record, show_all: bool) -> Iterator[str]:
    run = record.run_id
    if run in found.models:
        yield _model(found.models[run])
    if run in found.pictures:
        yield from _pictures(found.pictures[run], show_all)
    if run in found.facts:
        yield from map(_facts, found.facts[run])
    if run in found.unread:
        yield f"! what it found cannot be told any more: {found.unread[run]}"


def _model(model: ModelFacts) -> str:
    revision = f"revision {model.revision[:12]} ({model.files} files)"
    return f"model {model.name}: from {model.source}, {revision}, licence {model.licence}"


def _pictures(pictures: Sequence[Picture], show_all: bool) -> Iterator[str]:
    shown = pictures if show_all else pictures[:FEW]
    for p in shown:
        yield f"picture {p.picture_id}: {p.source_page} ({p.locator}), {p.licence}, {p.author}, sha256 {p.sha256[:12]}"
    if len(pictures) > len(shown):
        yield f"... and {len(pictures) - len(shown)} more pictures: --all, or --picture ID for one"


def _facts(facts: FactSource) -> str:
    relations = ", ".join(facts.relations)
    return f"{facts.n_facts} facts ({relations}): {facts.source} {facts.source_version}, {facts.licence}, {facts.url}"


def found_lines(found: Found) -> Iterator[str]:
    """What rests on an input, and how to take a picture down."""
    yield found.what
    if found.picture is not None:
        yield from (f"  {line}" for line in _pictures([found.picture], True))
        yield from (f"  held by {path}" for path in found.archives)
    for run in found.runs:
        yield f"  {' '.join(filter(None, (run.step, run.model)))}  run {run.run_id[:_SHORT]}"
        yield from (f"    {output.path}" for output in run.outputs)
    n_files = sum(len(run.outputs) for run in found.runs)
    yield f"{n_files} artifacts of {len(found.runs)} runs rest on it"
    if found.picture is not None:
        yield from _take_down(found)


def _take_down(found: Found) -> Iterator[str]:
    if found.questions:
        shown = [f"{model}: {question}" for model, question in found.questions]
        yield f"questions that show it: {'; '.join(shown)}"
    else:
        yield "no question shows it"
    yield (
        "to take it down: remove it from the source that curate_entities reads (picture_sources.parquet lists it as "
        f"{found.picture.locator if found.picture else ''}), then snakemake --cores all; older copies stay in DVC's "
        "cache and remote until `dvc gc --workspace` and `dvc gc --workspace --cloud`"
    )


def difference_lines(found: Difference) -> Iterator[str]:
    """What differs between two runs, in sections; sections without a difference are left out."""
    yield f"A  {found.a}"
    yield f"B  {found.b}"
    if not found.counts:
        yield "no difference that counts: step, model, params, code and inputs are the same"
    yield from _section("params", found.params)
    yield from _section("code", found.code)
    yield from _inputs(found)
    for name in ("versions", "host", "models", "outputs"):
        yield from _section(name, getattr(found, name))
    a, b = found.seconds
    ratio = f", B / A = {b / a:.2f}" if a > 0 else ""
    yield f"seconds: {a:.1f} -> {b:.1f}{ratio}"


def _section(name: str, changes: Sequence[Change]) -> Iterator[str]:
    if changes:
        yield f"{name}:"
        yield from (f"  {c.key}: {c.a} -> {c.b}" for c in changes)


def _inputs(found: Difference) -> Iterator[str]:
    if found.inputs:
        yield "inputs:"
    for item in found.inputs:
        a, b = ((x or "(not read)")[:12] for x in (item.a, item.b))
        yield f"  {item.name} {item.path}: {a} -> {b}"
    causes = dict.fromkeys(cause for item in found.inputs for cause in item.causes)
    if causes:
        yield "first causes of these:"
    yield from (f"  {line}" for cause in causes for line in _cause(cause))


def _cause(cause: Cause) -> Iterator[str]:
    yield f"{cause.a} -> {cause.b}"
    if not cause.changes:
        yield "  the same params, code and inputs: made on another machine or version, or altered by hand"
    yield from (f"  {c.key}: {c.a} -> {c.b}" for c in cause.changes)
