"""A user's own table on the tiny models, from nothing to a benchmark; a changed file re-runs what reads it."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.workflow
ANSWERS = "results/run_benchmark/tiny-vlm/answers.parquet"


@pytest.fixture
def own(fresh):
    """The tiny study before anything has run, on the flags without colour as the user's own table."""
    fresh.run(sys.executable, str(ROOT / "configurations/grey_flags.py"), check=True)
    params = yaml.safe_load((fresh.root / "params.yaml").read_text())
    example = yaml.safe_load((ROOT / "configurations/grey_flags.yaml").read_text())
    params["curate_entities"]["source"] = example["curate_entities"]["source"]
    params["fetch_images"]["styles"] = example["fetch_images"]["styles"]
    params["build_questions"] |= {"templates": {}, "style": "drawn"}
    (fresh.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    fresh.run("twohop", "write_dvc", check=True)
    return fresh


def test_own_table_from_nothing_to_a_benchmark(own) -> None:
    own.snakemake(ANSWERS)
    questions = pl.read_parquet(own.root / "results/build_questions/tiny-vlm/questions.parquet")
    assert questions.height == 10 * 2
    assert questions["before"].str.starts_with("Consider the following country: ").all()
    assert questions["picture_id"].str.ends_with("/drawn").all()
    answers = pl.read_parquet(own.root / ANSWERS)
    assert set(answers["condition"]) == {"text", "image", "blank"}
    manifest = pl.read_parquet(own.root / "results/fetch_images/manifest.parquet")
    assert set(manifest["style"]) == {"drawn", "round"}
    assert set(manifest["status"]) == {"ok"}
    record = json.loads((own.root / "results/curate_entities/lineage.json").read_text())
    named = {item["path"]: item["sha256"] for item in record["inputs"]}
    assert "data/own/grey_flags/entities.csv" in named
    assert len(named) == 1 + 2 * 195
    assert all(len(digest) == 64 for digest in named.values())


POPVQA = """
import csv, shutil
from pathlib import Path
rows = list(csv.DictReader(open("data/own/grey_flags/entities.csv", encoding="utf-8")))[:60]
folder = Path("data/own/got")
folder.mkdir(parents=True)
shutil.copytree("data/own/grey_flags/pictures", folder / "pictures")
with (folder / "entities.csv").open("w", encoding="utf-8", newline="") as f:
    out = csv.writer(f)
    out.writerow(["type", "s_uri", "subject", "aliases", "path"])
    for i, r in enumerate(rows, 1):
        out.writerow(["landmarks", f"http://www.wikidata.org/entity/Q{i}", r["name"], "[]", r["picture.drawn"]])
with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as f:
    out = csv.writer(f)
    out.writerow(["s_uri", "subject", "question", "question_for_image", "possible_answers", "relation"])
    for i, r in enumerate(rows, 1):
        for what in ("capital", "continent"):
            text = f"Q: What is the {what} of {r['name']}? A:"
            out.writerow([f"Q{i}", r["name"], text, "-", repr(r[what].split("|")), what])
"""


def test_popvqa_from_its_files_to_a_benchmark(own) -> None:
    own.run(sys.executable, "-c", POPVQA, check=True)
    params = yaml.safe_load((own.root / "params.yaml").read_text())
    source = {"kind": "popvqa", "folder": "data/own/popvqa", "files": "data/own/got"}
    params["curate_entities"] |= {"source": source, "relations": ["capital", "continent"]}
    params["fetch_images"]["styles"], params["build_questions"]["style"] = ["main"], "main"
    (own.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    refused = own.run("snakemake", "--cores", "2", "-n")
    assert refused.returncode != 0
    assert "twohop fetch_entities" in refused.stdout + refused.stderr
    assert "review data/own/popvqa/templates.yaml" in own.run("twohop", "fetch_entities", check=True).stdout
    prompts = yaml.safe_load((own.root / "data/own/popvqa/templates.yaml").read_text())
    params["build_questions"]["templates"] = prompts["build_questions"]["templates"]
    (own.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    own.run("twohop", "write_dvc", check=True)
    own.snakemake(ANSWERS)
    questions = pl.read_parquet(own.root / "results/build_questions/tiny-vlm/questions.parquet")
    assert questions.height == 10 * 2
    assert set(questions["before"]) == {"Q: What is the capital of ", "Q: What is the continent of "}
    assert set(questions["after"]) == {"? A:"}


def test_a_changed_file_of_the_table_re_runs_what_reads_it(own) -> None:
    targets = ("results/fetch_images/manifest.parquet", "results/prepare_model/tiny-llm/card.json")
    readers = {"curate_entities", "fetch_images"}
    own.snakemake(*targets)
    assert "Nothing to be done" in own.snakemake(*targets)
    assert not {*readers, "prepare_model@tiny-llm"} & own.changed_stages()
    own.edit("data/own/grey_flags/entities.csv", "Paris", "Lutetia|Paris")
    planned = own.snakemake("-n", *targets)
    assert "curate_entities" in planned
    assert "prepare_model" not in planned
    changed = own.changed_stages()
    assert "curate_entities" in changed
    assert "prepare_model@tiny-llm" not in changed
    pictures = own.root / "data/own/grey_flags/pictures"
    (pictures / "FR-drawn.png").write_bytes((pictures / "BR-drawn.png").read_bytes())
    assert readers <= own.changed_stages()
    own.snakemake(*targets)
    facts = pl.read_parquet(own.root / "results/curate_entities/facts.parquet")
    assert "Lutetia" in facts["answer"].to_list()
    entities = pl.read_parquet(own.root / "results/curate_entities/entities.parquet")
    assert "table:BR" in dict(entities.select("entity_id", "look_alikes").iter_rows())["table:FR"]


def test_b01_dvc_yaml_that_lacks_a_new_picture_is_refused(own) -> None:
    pictures = own.root / "data/own/grey_flags/pictures"
    (pictures / "new.png").write_bytes((pictures / "BR-drawn.png").read_bytes())
    done = own.run("twohop", "write_dvc", "--check")
    assert done.returncode != 0
    assert "write_dvc" in done.stderr
