"""One model's activations as a folder that explains and checks itself, for people without the repository.

`sha256sum -c SHA256SUMS` verifies it, h5py and numpy read it; `check_bundle` also opens the activations and follows the
lineage. A folder is built under a hidden name and renamed when it is whole.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from twohop.errors import ArtifactError
from twohop.lineage import HISTORY, RECORD, InputFile, Record, read_record, record_of
from twohop.store import ActivationReader, read_json, sha256_file, write_bytes, write_json

ACTIVATIONS, CARD, QUESTIONS, PICTURES = "activations.h5", "card.json", "questions.json", "pictures.json"
SUMS, README, EXAMPLE, ANCESTORS = "SHA256SUMS", "README.md", "read_activations.py", "ancestors"
STEP = "extract_activations"


@dataclass(frozen=True)
class Bundle:
    """A finished bundle."""

    path: Path
    files: int
    bytes: int


def bundle(model: str, target: Path) -> Bundle:
    """Write a model's activations with card, lineage, meaning of the rows, checksums and a reader example.

    Raises:
        ArtifactError: something is not here, not what its record says, or `target` exists.
    """
    source = Path("results") / STEP / model
    if target.exists():
        raise ArtifactError("there is something already", str(target), "delete it, or name another folder: -o DIR")
    if not (source / RECORD).exists():
        raise ArtifactError(f"no activations of {model}", str(source), f"twohop pull {STEP}@{model}, or make them")
    record = read_record(source / RECORD)
    tmp = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    try:
        _fill(tmp, source, record, model)
        if faults := check_bundle(tmp):
            raise ArtifactError("\n".join(faults), str(source), f"twohop pull {STEP}@{model}, or make it again")
        tmp.rename(target)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    found = [p for p in target.rglob("*") if p.is_file()]
    return Bundle(target, len(found), sum(p.stat().st_size for p in found))


def check_bundle(folder: Path) -> list[str]:
    """What is wrong with a bundle, one line per file; empty when nothing is.

    Raises:
        ArtifactError: it is no bundle.
    """
    sums = _read_sums(folder / SUMS)
    faults = [f"{name}: {fault}" for name, digest in sums.items() if (fault := _fault(folder / name, digest))]
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {SUMS}
    faults += [f"{name}: not in {SUMS}" for name in sorted(present - set(sums))]
    wanted = {ACTIVATIONS, CARD, RECORD, QUESTIONS, PICTURES, README, EXAMPLE}
    faults += [f"{name}: not in the bundle" for name in sorted(wanted - set(sums))]
    return faults or [*_check_activations(folder), *_check_lineage(folder)]


def _fill(folder: Path, source: Path, record: Record, model: str) -> None:
    for name, ancestor in _ancestors(record).items():
        write_json(folder / ANCESTORS / name, ancestor.as_json())
    card = next(Path(i.path) for i in record.inputs if i.name == "card")
    for origin, stage in ((source / ACTIVATIONS, STEP), (source / RECORD, STEP), (card, "prepare_model")):
        if not origin.exists():
            raise ArtifactError("it is not here", str(origin), f"twohop pull {stage}@{model}")
        shutil.copyfile(origin, folder / origin.name)
    with ActivationReader(folder / ACTIVATIONS) as reader:
        questions, pictures = _questions(reader), _pictures(reader)
        readme = _readme(reader, record, read_json(folder / CARD), pictures)
    write_json(folder / QUESTIONS, questions)
    write_json(folder / PICTURES, pictures)
    write_bytes(folder / README, readme.encode())
    write_bytes(folder / EXAMPLE, example().encode())
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    write_bytes(folder / SUMS, "".join(lines).encode())


def example() -> str:
    """The reader example, as it lies in every bundle and stands in the docs."""
    return files("twohop.store").joinpath(EXAMPLE).read_text(encoding="utf-8")


# --- what rows are ----------------------------------------------------------------------------------------------------


def _questions(reader: ActivationReader) -> list[dict[str, str]]:
    """Rows of the runs `text` and `image`, in file order."""
    rows = {run: _rows(reader, run) for run in ("text", "image") if run in reader.runs()}
    first, *others = rows.values()
    for other in others:
        if [r["row"] for r in other] != [r["row"] for r in first]:
            raise ArtifactError("the runs text and image have other rows", ACTIVATIONS, "make it again")
        first = [{**a, **b} for a, b in zip(first, other, strict=True)]
    return first


def _pictures(reader: ActivationReader) -> list[dict[str, str]]:
    """Rows of the run `pictures`, in file order; none for a model without eyes."""
    return _rows(reader, "pictures") if "pictures" in reader.runs() else []


def _rows(reader: ActivationReader, run: str) -> list[dict[str, str]]:
    about = {"row": reader.rows(run), **reader.about(run)}
    return [dict(zip(about, texts, strict=True)) for texts in zip(*about.values(), strict=True)]


# --- lineage ----------------------------------------------------------------------------------------------------------


def _ancestors(record: Record) -> dict[str, Record]:
    """Records of everything upstream: file name -> record."""
    found: dict[str, Record] = {}
    absent: set[str] = set()
    todo = [item for item in record.inputs if item.run_id is not None]  # git has the others
    while todo:
        maker = _maker(item := todo.pop())
        if maker is None:
            absent.add("@".join(Path(item.path).parts[1:-1]))
            continue
        name = f"{maker.step}-{maker.model}.json" if maker.model else f"{maker.step}.json"
        if name not in found:
            found[name] = maker
            todo += [item for item in maker.inputs if item.run_id is not None]
    if absent:
        names = " ".join(sorted(absent))
        raise ArtifactError(f"lineage records are not here: {names}", "results", f"twohop pull {names}")
    return found


def _maker(item: InputFile) -> Record | None:
    """The record of the run whose bytes were read."""
    kept = HISTORY / f"{item.run_id}.json"
    record = read_record(kept) if kept.exists() else record_of(Path(item.path))
    if record is not None and record.run_id != item.run_id and item.sha256 not in {o.sha256 for o in record.outputs}:
        raise ArtifactError(
            "the record here is of another run than the one that was read",
            item.path,
            "bring all to one state: snakemake --cores all; or take the commit that made the activations",
        )
    return record


def _check_lineage(folder: Path) -> list[str]:
    """Every input of every record has its maker in the bundle, by content."""
    records = {str(p.relative_to(folder)): read_record(p) for p in [folder / RECORD, *_ancestor_files(folder)]}
    made = {o.sha256 for r in records.values() for o in r.outputs}
    return [
        f"{name}: nothing here says who made {item.path}"
        for name, record in records.items()
        for item in record.inputs
        if item.run_id is not None and item.sha256 not in made
    ]


def _ancestor_files(folder: Path) -> list[Path]:
    return sorted((folder / ANCESTORS).glob("*.json"))


# --- checks -----------------------------------------------------------------------------------------------------------


def _read_sums(path: Path) -> dict[str, str]:
    """File name -> sha256, as `sha256sum` writes it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"not a bundle: {error}", str(path), "get the folder again, whole") from None


def _fault(path: Path, recorded: str) -> str:
    if not path.is_file():
        return "missing"
    return "" if sha256_file(path) == recorded else "its bytes differ from its sha256"


def _check_activations(folder: Path) -> Iterable[str]:
    """The file opens, every chunk has its checksum, and record and card speak of this file."""
    record = read_record(folder / RECORD)
    digests = {"activations": ACTIVATIONS, "card": CARD}
    known = {item.name: item.sha256 for item in (*record.outputs, *record.inputs)}
    for name, file in digests.items():
        if known.get(name) != sha256_file(folder / file):
            yield f"{file}: it is not the one of {RECORD}"
    try:
        with ActivationReader(folder / ACTIVATIONS) as reader:
            reader.check_all()
    except ArtifactError as error:
        yield f"{ACTIVATIONS}: {error.what}"


# --- the page ---------------------------------------------------------------------------------------------------------


def _readme(
    reader: ActivationReader, record: Record, card: Mapping[str, Any], pictures: Sequence[Mapping[str, str]]
) -> str:
    runs = {
        run: {
            "rows": len(reader.rows(run)),
            "kinds": (kinds := _kinds(reader, run)),
            "layers": reader.layers(run, next(iter(kinds))),
        }
        for run in reader.runs()
    }
    licences = Counter((p["art_source"], p["licence"], p["source_page"]) for p in pictures)
    template = jinja2.Environment(autoescape=False, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        files("twohop.report").joinpath("bundle.md").read_text(encoding="utf-8")
    )
    return template.render(
        attrs=reader.attrs,
        card=card,
        record=asdict(record),
        params=json.dumps(record.params[STEP], sort_keys=True),
        runs=runs,
        licences=licences,
        example=example().strip(),
    )


def _kinds(reader: ActivationReader, run: str) -> dict[str, list[str]]:
    """Site kinds of a run, each with its token groups."""
    kinds: dict[str, list[str]] = {}
    for kind in sorted(reader.attrs["sites"]):
        with contextlib.suppress(ArtifactError):  # not every run has every kind
            kinds[kind] = reader.groups(run, kind)
    return kinds
