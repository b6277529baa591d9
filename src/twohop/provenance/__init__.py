"""What is asked of records and tables together: where a result comes from, what rests on a picture, graph, crate."""

from twohop.provenance._ancestry import Ancestry, FactSource, ModelFacts, Picture, trace
from twohop.provenance._crate import export
from twohop.provenance._graph import graph_page
from twohop.provenance._inputs import Found, find_input
from twohop.provenance._words import difference_lines, found_lines, run_lines, view_lines

__all__ = [
    "Ancestry",
    "FactSource",
    "Found",
    "ModelFacts",
    "Picture",
    "difference_lines",
    "export",
    "find_input",
    "found_lines",
    "graph_page",
    "run_lines",
    "trace",
    "view_lines",
]
