"""The command `regrade`: the present grader on stored answers."""

from pathlib import Path
from typing import TYPE_CHECKING

from twohop.cli._command import Adder, Arguments, command

if TYPE_CHECKING:
    import polars as pl

    from twohop.report import Regraded


def add(add: Adder) -> None:
    """Put the command into the parser."""
    text = (
        "Show what the present grader, or further aliases, would change in the stored answers; runs no model and "
        "writes nothing below results/ (docs/grading.md)."
    )
    sub = command(add, "regrade", text, _regrade)
    sub.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    sub.add_argument("--aliases", type=Path, metavar="CSV", help="entity_id,relation,alias; relation empty: a name")
    sub.add_argument("--out", type=Path, metavar="DIR", help="put changes, counts and regraded tables here")
    sub.add_argument("--limit", type=int, default=40, metavar="N", help="show at most N changed grades")


def _regrade(args: Arguments) -> None:
    from twohop.config import load_params
    from twohop.report import counts, losses, regrade

    params = load_params()
    found = list(regrade(args.results, _more(args.aliases)))
    backbones = {name: entry.backbone for name, entry in params.models.items() if entry.backbone}
    table = counts(found)
    loss = losses(found, args.results, backbones, params.plot_figures.n_boot, params.plot_figures.seed)
    changes = _changes(found)
    _show(changes, table, loss, args.limit)
    if args.out is not None:
        _write(args.out, args.results, found, {"changes": changes, "counts": table, "degradation": loss})


def _more(path: Path | None) -> "pl.DataFrame | None":
    import polars as pl

    from twohop.errors import ArtifactError

    if path is None:
        return None
    try:
        more = pl.read_csv(path, schema_overrides=dict.fromkeys(("entity_id", "relation", "alias"), pl.String))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"cannot read aliases: {error}", str(path)) from None
    missing = {"entity_id", "relation", "alias"} - set(more.columns)
    if missing:
        raise ArtifactError(f"lacks {', '.join(sorted(missing))}", str(path), "head: entity_id,relation,alias")
    return more.with_columns(pl.col("relation").fill_null(""))


def _changes(found: "list[Regraded]") -> "pl.DataFrame":
    import polars as pl

    return pl.concat([r.reasons for r in found])


def _show(changes: "pl.DataFrame", counts: "pl.DataFrame", losses: "pl.DataFrame", limit: int) -> None:
    for row in changes.head(limit).iter_rows(named=True):
        print(
            f"{row['table']} {row['model']} {row['condition']} {row['about']}: {row['answer_text']!r} "
            f"[{row['accepted']}]: {row['was']} -> {row['now']} ({row['reason']})"
        )
    if changes.height > limit:
        print(f"... and {changes.height - limit} more (--limit, --out)")
    for row in counts.filter(counts["changed"] > 0).iter_rows(named=True):
        print(
            f"{row['table']} {row['model']} {row['condition']}: {row['changed']} of {row['answers']} grades change, "
            f"right {row['right_before']} -> {row['right_after']}"
        )
    worth = losses.filter(losses["gate"] == "all") if changes.height and losses.height else losses.clear()
    for row in worth.iter_rows(named=True):
        ends = [row[k] for k in ("degradation", "degradation_low", "degradation_high")]
        shown = " ".join("-" if v is None else f"{100 * v:.1f}" for v in ends)
        print(f"degradation {row['model']} {row['comparison']} {row['grades']}: {shown} (%, 95 % interval)")
    n = int(counts["answers"].sum())
    print(f"{n} stored answers, {changes.height} grades change" + " (nothing to do)" * (not changes.height))
    if changes.height:
        print("results/ is as it was; `snakemake --cores all` makes the new grades official")


def _write(out: Path, results: Path, found: "list[Regraded]", tables: "dict[str, pl.DataFrame]") -> None:
    from twohop.errors import ArtifactError
    from twohop.store import schemas, write_bytes, write_table

    if out.resolve().is_relative_to(results.resolve()):
        raise ArtifactError("regraded tables are no artifacts", str(out), "choose a folder outside results/")
    for r in found:
        write_table(out / r.path.relative_to(results), r.after, getattr(schemas, r.table.upper()))
    for name, table in tables.items():
        write_bytes(out / f"{name}.csv", table.write_csv().encode())
    print(f"written: {out}")
