"""Step curate_entities: which entities the study evaluates, what is asked about them, where their pictures are.

1. the source yields entities, facts and pictures; the tables are checked row by row;
2. candidates are the entities whose picture looks like no other's (of a group of look-alikes none is used), is not the
   same in two art sources (holding one out would hold nothing out), that pass the source's own filters, and whose every
   asked relation has a fact that the name does not give away;
3. `n_entities` of the candidates are drawn by the seed. The other entities stay in the table: their names compete in
   the recognition gate;
4. the funnel says how many entities each filter left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

import polars as pl

from twohop.config import CurateEntities, source_table
from twohop.data import (
    SOURCES,
    EntityRecord,
    FactRecord,
    Source,
    TableEntities,
    check_entities,
    check_facts,
    draw_entities,
    pass_filters,
)
from twohop.errors import DataError
from twohop.steps._step import Job, Step, Summary
from twohop.store import schemas, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="curate_entities",
    params=("curate_entities",),
    inputs=("source_tables", "source_pictures"),
    outputs=("entities", "facts", "picture_sources", "funnel"),
    per_model=False,
)


def run(job: Job) -> Summary:
    """Write the four tables.

    Raises:
        DataError: the source's tables are faulty, or have fewer candidates than `n_entities`.
    """
    params = job.section(CurateEntities)
    source, label = _open(job, params)
    entities, facts = list(source.entities()), list(source.facts(params.relations))
    LOG.info("%s: %d entities, %d facts", label, len(entities), len(facts))
    filters = find_filters(source, entities, facts, params.relations)
    candidates, funnel = pass_filters([e.entity_id for e in entities], filters)
    for row in funnel:
        LOG.info("%s: %d of %d left out", row.filter, row.dropped, row.rows_in)
    if len(candidates) < params.n_entities:
        lost = "; ".join(f"{row.filter}: {row.dropped}" for row in funnel if row.dropped)
        raise DataError(
            f"n_entities is {params.n_entities}, but only {len(candidates)} entities have a picture of their own and "
            f"a fact for every one of {', '.join(params.relations)} (left out: {lost})",
            label,
            "lower curate_entities.n_entities or ask fewer relations",
        )
    drawn = set(draw_entities(candidates, params.n_entities, params.seed))
    _, funnel = pass_filters([e.entity_id for e in entities], [*filters, ("not drawn", {*candidates} - drawn)])
    entity_rows = [{**asdict(e), "evaluated": e.entity_id in drawn} for e in entities]
    entity_table = pl.DataFrame(entity_rows, schema=schemas.ENTITIES)
    fact_table = pl.DataFrame([asdict(f) for f in facts], schema=schemas.FACTS)
    pictures = pl.DataFrame([asdict(p) for p in source.pictures()], schema=schemas.PICTURE_SOURCES)
    check_entities(entity_table, f"{label}, entities")
    check_facts(fact_table, [e.entity_id for e in entities], f"{label}, facts")
    write_table(job.output("entities"), entity_table, schemas.ENTITIES)
    write_table(job.output("facts"), fact_table, schemas.FACTS)
    write_table(job.output("picture_sources"), pictures, schemas.PICTURE_SOURCES)
    funnel_table = pl.DataFrame([asdict(row) for row in funnel], schema=schemas.FUNNEL)
    write_table(job.output("funnel"), funnel_table, schemas.FUNNEL)
    counts = {"repeated_pictures": len(source.repeated()), "candidates": len(candidates), "evaluated": len(drawn)}
    return {**_summary(entities, facts), **counts, "pictures": pictures.height}


def _open(job: Job, params: CurateEntities) -> tuple[Source, str]:
    """The source, and what messages call it."""
    table = source_table(params.source)
    if isinstance(params.source, str) or table is None:
        return SOURCES[str(params.source)](), f"source {params.source}"
    found = TableEntities(table, params.relations, job.inputs["source_pictures"])
    return found, f"source {params.source.kind}, {table.entities}"


def find_filters(
    source: Source, entities: Sequence[EntityRecord], facts: Sequence[FactRecord], relations: Sequence[str]
) -> list[tuple[str, set[str] | frozenset[str]]]:
    """What each filter drops, in the order in which entities pass them; one for each asked relation's facts."""
    known = {(f.entity_id, f.relation) for f in facts}
    given_away = {(f.entity_id, f.relation) for f in facts if f.name_in_answer}
    ids = [e.entity_id for e in entities]
    filters: list[tuple[str, set[str] | frozenset[str]]] = [*source.rejected()]
    filters.append(("looks like another entity", {e.entity_id for e in entities if e.look_alikes}))
    filters.append(("same picture in two art sources", source.repeated()))
    for relation in relations:
        filters.append((f"no answer to {relation}", {e for e in ids if (e, relation) not in known}))
        hidden = {e for e in ids if (e, relation) in given_away}
        filters.append((f"name and {relation} give each other away", hidden))
    return filters


def _summary(entities: Sequence[EntityRecord], facts: Sequence[FactRecord]) -> dict[str, int]:
    return {
        "entities": len(entities),
        "with_look_alikes": sum(bool(e.look_alikes) for e in entities),
        "facts": len(facts),
        "name_in_answer": sum(f.name_in_answer for f in facts),
    }
