"""The study as a Workflow Run RO-Crate 0.5: the workflow, one action for the whole run, one for each step's run.

Profiles: Process Run Crate, Workflow Run Crate (https://w3id.org/ro/wfrun) and Workflow RO-Crate 1.0. Every file has
its sha256; large ones are named by it (RFC 6920, `ni:`) instead of copied, unless they are asked for.
"""

import base64
import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from twohop.errors import ArtifactError, TwohopError
from twohop.lineage import InputFile, OutputFile, Record, describe, digest_of, sha256
from twohop.store import read_table, schemas

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": ("Workflow RO-Crate", "1.0"),
}
_TERMS = "https://w3id.org/ro/terms/workflow-run/context"
_PARAMETER = "https://bioschemas.org/profiles/FormalParameter/1.0-RELEASE"
_LICENCE = "https://spdx.org/licenses/Apache-2.0"
_REPOSITORY = ("README.md", "LICENSE", "NOTICE", "CITATION.cff")
LARGE = {"activations.h5", "pictures.zip", "probes.safetensors", "projector.safetensors"}
"""Files that are named by their hash unless data are asked for."""
_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".h5": "application/x-hdf5",
    ".safetensors": "application/octet-stream",
}
_DATA_TYPES = {bool: "Boolean", int: "Integer", float: "Float"}


def export(folder: Path, records: Sequence[Record], with_data: bool = False) -> dict[str, int]:
    """Write the crate; gives how many runs and files it tells of.

    Args:
        folder: where to; it must not exist, or be empty.
        records: the runs, e.g. those that made what lies in results/.
        with_data: also copy the large files.

    Raises:
        TwohopError: the folder is in use, or there is no run, no Snakefile.
        ArtifactError: an artifact was altered after its run.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise TwohopError("it is not an empty folder", str(folder), "name a new folder for the crate")
    if not records or not Path("Snakefile").exists():
        raise TwohopError(
            "there is no finished run to export", str(Path.cwd()), "snakemake --cores all, in this folder"
        )
    crate = _Crate(with_data)
    for record in records:
        crate.add_run(record)
    crate.add_whole(records)
    crate.crate.write(folder)
    return {"runs": len(records), "files": len(crate.files)}


def _empty_crate() -> Any:
    try:
        from rocrate.rocrate import ROCrate
    except ModuleNotFoundError:
        raise TwohopError("the package rocrate is missing", "export", 'pip install "twohop[crate]"') from None
    return ROCrate(gen_preview=True, version="1.1")


class _Crate:
    """Builds the crate: entities are made once, by path or key."""

    def __init__(self, with_data: bool) -> None:
        self.crate: Any = _empty_crate()
        self.with_data = with_data
        self.files: dict[str, Any] = {}
        self._made: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._results: list[Any] = []
        self._examples: list[tuple[Any, Any]] = []
        self.crate.metadata.extra_contexts.append(_TERMS)
        self.workflow = self._workflow()

    def _workflow(self) -> Any:
        found = self.crate.add_workflow(
            "Snakefile", "Snakefile", main=True, lang="snakemake", lang_version=version("snakemake")
        )
        found["name"] = "twohop"
        found["version"] = version("twohop")
        found["license"] = {"@id": _LICENCE}
        found["hasPart"], found["input"], found["output"] = [], [], []
        for path in sorted(Path("workflow").rglob("*.smk")):
            self._source(path)
        for name in _REPOSITORY:
            if Path(name).exists():
                properties = {"name": name, "encodingFormat": _mime(Path(name)), "about": {"@id": "./"}}
                self.crate.add_file(name, name, properties=properties)
        return found

    def _source(self, path: Path) -> Any:
        """A source file of the workflow, as a tool of it."""
        if str(path) not in self._made:
            properties = {
                "@type": ["File", "SoftwareSourceCode"],
                "name": path.name,
                "version": version("twohop"),
                "encodingFormat": "text/x-python" if path.suffix == ".py" else "text/plain",
            }
            self._made[str(path)] = self.crate.add_file(str(path), str(path), properties=properties)
        return self._made[str(path)]

    def _context(self, identifier: str, properties: Mapping[str, Any]) -> Any:
        from rocrate.model.contextentity import ContextEntity

        if identifier not in self._made:
            self._made[identifier] = self.crate.add(ContextEntity(self.crate, identifier, properties=dict(properties)))
        return self._made[identifier]

    def add_run(self, record: Record) -> None:
        """One step's run: what it read, with which params and which tool, what it wrote."""
        objects = [*(self._input(i) for i in record.inputs), *self._params(record)]
        results = [self._file(o, record, o.name) for o in record.outputs]
        self._results += results
        self.crate.add_action(
            self._tool(record.step),
            identifier=f"#run-{record.run_id}",
            object=_one_or_all(objects),
            result=_one_or_all(results),
            properties={
                "name": describe(record),
                "description": f"`{record.command.partition(' --params ')[0]}`, {record.seconds} s",
                "startTime": record.started,
                "endTime": record.ended,
                "actionStatus": "http://schema.org/CompletedActionStatus",
                "identifier": record.run_id,
                "environment": [self._version(*item) for item in sorted(record.versions.items())],
            },
        )

    def _tool(self, step: str) -> Any:
        """The step's module: what a run was an execution of."""
        path = Path(f"src/twohop/steps/{step}.py")
        if path.exists():
            tool = self._source(path)
        else:
            tool = self._context(f"#step-{step}", {"@type": "SoftwareApplication", "name": step})
        if tool not in self.workflow["hasPart"]:
            self.workflow.append_to("hasPart", tool)
        return tool

    def _version(self, name: str, number: str) -> Any:
        properties = {"@type": "PropertyValue", "name": f"{name} version", "value": number}
        return self._context(f"#version-{name}-{number}", properties)

    def _input(self, item: InputFile) -> Any:
        if item.run_id is not None or Path(item.path).name == "lineage.json":
            return self._file(item, None, item.name)
        known = item.path in self.files
        file = self._file(item, None, item.name)
        if not known:
            self._link(file, "input", f"input-{item.path}", item.name, "File")
            self._inputs.append(file)
        return file

    def _file(self, item: InputFile | OutputFile, maker: Record | None, name: str) -> Any:
        """The entity of a file, copied or named by its hash; an output is also an output of the workflow."""
        if item.path not in self.files:
            self.files[item.path] = self._new_file(item)
        file = self.files[item.path]
        if maker is not None:
            self._link(file, "output", f"output-{maker.step}-{name}", f"{maker.step} {name}", "File")
        return file

    def _new_file(self, item: InputFile | OutputFile) -> Any:
        path = Path(item.path)
        if path.is_absolute() or ".." in path.parts:
            raise ArtifactError("a record names a file outside of the project", item.path, "see `twohop lineage check`")
        properties = {
            "name": path.name,
            "sha256": item.sha256,
            "encodingFormat": _mime(path),
            **({"contentSize": str(item.bytes)} if isinstance(item, OutputFile) else {}),
            **self._licences(path),
        }
        if path.exists() and (self.with_data or path.name not in LARGE):
            if sha256(path) != item.sha256:
                raise ArtifactError("it is not what its record says", item.path, "see `twohop lineage check`")
            return self.crate.add_file(item.path, item.path, properties=properties)
        return self._named(item, properties)

    def _named(self, item: InputFile | OutputFile, properties: Mapping[str, Any]) -> Any:
        """A file that is not in the crate, by its hash."""
        from rocrate.model.data_entity import DataEntity

        digest = base64.urlsafe_b64encode(bytes.fromhex(item.sha256)).decode().rstrip("=")
        extra = {"@type": "File", "alternateName": item.path, "description": "Not copied: named by its sha256."}
        return self.crate.add(
            DataEntity(self.crate, f"ni:///sha-256;{digest}?path={item.path}", properties={**properties, **extra})
        )

    def _licences(self, path: Path) -> dict[str, Any]:
        """Licences of pictures and facts, which are not this project's own."""
        table = {"pictures.zip": schemas.MANIFEST, "manifest.parquet": schemas.MANIFEST, "facts.parquet": schemas.FACTS}
        source = path.with_name("manifest.parquet") if path.name == "pictures.zip" else path
        if path.name not in table or not source.exists():
            return {}
        column = read_table(source, table[path.name]).select(pl.col("licence").unique().sort())["licence"]
        return {"license": _one_or_all([self._licence(name) for name in column.to_list() if name])}

    def _licence(self, name: str) -> Any:
        slug = "".join(c if c.isalnum() else "-" for c in name.lower())
        return self._context(f"#licence-{slug}", {"@type": "CreativeWork", "name": name})

    def _params(self, record: Record) -> Iterable[Any]:
        """Each value of params.yaml that the run read, as an example of one of the workflow's parameters."""
        for key, value in _leaves(record.params):
            text = json.dumps(value, ensure_ascii=False, sort_keys=True)
            shown = value if isinstance(value, (bool, int, float, str)) else text
            identifier = f"#value-{key}-{digest_of(text)[:8]}"
            fresh = identifier not in self._made
            entity = self._context(identifier, {"@type": "PropertyValue", "name": key, "value": shown})
            if fresh:
                self._link(entity, "input", f"param-{key}", key, _data_type(value))
                self._inputs.append(entity)
            yield entity

    def _link(self, entity: Any, side: str, identifier: str, name: str, kind: str) -> None:
        """Tell that an entity is an example of a parameter of the workflow."""
        properties = {
            "@type": "FormalParameter",
            "name": name,
            "additionalType": kind,
            "conformsTo": {"@id": _PARAMETER},
        }
        fresh = f"#{identifier}" not in self._made
        parameter = self._context(f"#{identifier}", properties)
        if fresh:
            self.workflow.append_to(side, parameter)
        self._examples.append((entity, parameter))

    def _write_examples(self) -> None:
        """Both directions of `_link`; a single value stands without a list."""
        for one, other, key in ((0, 1, "exampleOfWork"), (1, 0, "workExample")):
            found: dict[str, list[Any]] = {}
            for pair in self._examples:
                values = found.setdefault(pair[one].id, [])
                values += [pair[other]] if pair[other] not in values else []
            for pair in self._examples:
                values = found[pair[one].id]
                pair[one][key] = _one_or_all(values)

    def add_whole(self, records: Sequence[Record]) -> None:
        """The run of the whole workflow, and what the crate as a whole is."""
        ended = max(r.ended for r in records)
        commits = sorted({f"{r.commit}{' with edits' if r.dirty else ''}" for r in records if r.commit})
        self.crate.add_action(
            self.workflow,
            identifier="#run",
            object=self._inputs,
            result=self._results,
            properties={
                "name": "Run of the twohop workflow",
                "description": f"{len(records)} step runs; commit {', '.join(commits) or 'unknown'}",
                "startTime": min(r.started for r in records),
                "endTime": ended,
                "actionStatus": "http://schema.org/CompletedActionStatus",
            },
        )
        self._write_examples()
        self._root(ended)

    def _root(self, ended: str) -> None:
        root = self.crate.root_dataset
        root["name"] = "twohop: where does a vision-language model lose a fact that its language model knows?"
        root["description"] = (
            "Results of a Snakemake workflow with the lineage of each file: params, code, models, pictures and facts. "
            "Pictures and facts keep the licences of their sources, which stand at their files."
        )
        root["license"] = self._context(
            _LICENCE, {"@type": "CreativeWork", "name": "Apache License 2.0", "url": _LICENCE}
        )
        root["author"] = root["publisher"] = self._context(
            "#developers", {"@type": "Organization", "name": "The twohop developers"}
        )
        root["datePublished"] = ended
        root["conformsTo"] = [
            self._context(uri, {"@type": "CreativeWork", "name": name, "version": number})
            for uri, (name, number) in PROFILES.items()
        ]
        root["mentions"] = [e for e in self.crate.contextual_entities if e.type == "CreateAction"]


def _leaves(params: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Dotted key and value of every leaf; lists and empty sections are leaves."""
    for key, value in sorted(params.items()):
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{below}", leaf) for below, leaf in _leaves(value))
        else:
            yield key, value


def _data_type(value: object) -> str:
    """The schema.org type of a param's value; lists are given as JSON text."""
    if isinstance(value, bool):
        return "Boolean"
    return "Integer" if isinstance(value, int) else "Float" if isinstance(value, float) else "Text"


def _one_or_all(values: Sequence[Any]) -> Any:
    """RO-Crate wants a single value without a list."""
    return values[0] if len(values) == 1 else list(values)


def _mime(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
