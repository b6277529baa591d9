"""Step curate_entities: which entities the study evaluates, what is asked about them, where their pictures are.

1. the source yields entities, facts and pictures; the tables are checked row by row;
2. candidates are the entities whose picture looks like no other's (of a group of look-alikes none is used), is not the
   same in two art sources (holding one out would hold nothing out), and whose every asked relation has a fact that the
   name does not give away;
3. `n_entities` of the candidates are drawn by the seed. The other entities stay in the table: their names compete in
   the recognition gate.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

import polars as pl

from twohop.config import CurateEntities
from twohop.data import SOURCES, EntityRecord, FactRecord, check_entities, check_facts, draw_entities
from twohop.errors import DataError
from twohop.steps._step import Job, Step, Summary
from twohop.store import schemas, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="curate_entities",
    params=("curate_entities",),
    inputs=(),
    outputs=("entities", "facts", "picture_sources"),
    per_model=False,
)


def run(job: Job) -> Summary:
    """Write the three tables.

    Raises:
        DataError: the source's tables are faulty, or have fewer candidates than `n_entities`.
    """
    params = job.section(CurateEntities)
    source = SOURCES[params.source]()
    entities, facts = list(source.entities()), list(source.facts(params.relations))
    LOG.info("source %s: %d entities, %d facts", params.source, len(entities), len(facts))
    repeated = source.repeated()
    candidates = [e for e in find_candidates(entities, facts, params.relations) if e not in repeated]
    if len(candidates) < params.n_entities:
        raise DataError(
            f"n_entities is {params.n_entities}, but only {len(candidates)} entities have a picture of their own and "
            f"a fact for every one of {', '.join(params.relations)}",
            f"source {params.source}",
            "lower curate_entities.n_entities or ask fewer relations",
        )
    drawn = set(draw_entities(candidates, params.n_entities, params.seed))
    entity_rows = [{**asdict(e), "evaluated": e.entity_id in drawn} for e in entities]
    entity_table = pl.DataFrame(entity_rows, schema=schemas.ENTITIES)
    fact_table = pl.DataFrame([asdict(f) for f in facts], schema=schemas.FACTS)
    pictures = pl.DataFrame([asdict(p) for p in source.pictures()], schema=schemas.PICTURE_SOURCES)
    check_entities(entity_table, f"source {params.source}, entities")
    check_facts(fact_table, [e.entity_id for e in entities], f"source {params.source}, facts")
    write_table(job.output("entities"), entity_table, schemas.ENTITIES)
    write_table(job.output("facts"), fact_table, schemas.FACTS)
    write_table(job.output("picture_sources"), pictures, schemas.PICTURE_SOURCES)
    counts = {"repeated_pictures": len(repeated), "candidates": len(candidates), "evaluated": len(drawn)}
    return {**_summary(entities, facts), **counts, "pictures": pictures.height}


def find_candidates(
    entities: Sequence[EntityRecord], facts: Sequence[FactRecord], relations: Sequence[str]
) -> list[str]:
    """Ids of the entities without look-alikes that have a usable fact for every relation, in table order."""
    usable = {(f.entity_id, f.relation) for f in facts if not f.name_in_answer}
    return [e.entity_id for e in entities if not e.look_alikes and all((e.entity_id, r) in usable for r in relations)]


def _summary(entities: Sequence[EntityRecord], facts: Sequence[FactRecord]) -> dict[str, int]:
    return {
        "entities": len(entities),
        "with_look_alikes": sum(bool(e.look_alikes) for e in entities),
        "facts": len(facts),
        "name_in_answer": sum(f.name_in_answer for f in facts),
    }
