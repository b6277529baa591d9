"""The page a person reads: the answer in sentences, figures, tables, answers, cards and provenance in one HTML file."""

from twohop.report._bundle import Bundle, bundle, check_bundle
from twohop.report._findings import Finding, find
from twohop.report._page import Thumbnail, read_run, render, thumbnail
from twohop.report._regrade import Aliases, Regraded, counts, losses, regrade
from twohop.report._tables import Answer, Table, answers, limits, tables

__all__ = [
    "Aliases",
    "Answer",
    "Bundle",
    "Finding",
    "Regraded",
    "Table",
    "Thumbnail",
    "answers",
    "bundle",
    "check_bundle",
    "counts",
    "find",
    "limits",
    "losses",
    "read_run",
    "regrade",
    "render",
    "tables",
    "thumbnail",
]
