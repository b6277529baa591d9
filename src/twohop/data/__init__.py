"""Entity tables, facts and pictures: where they come from, how they are checked and read.

Models from a hub are in `twohop.data._hub`, imported by that name: it loads a network library that no step needs.
"""

from twohop.data._alike import difference_hash, near_duplicates
from twohop.data._augment import augment
from twohop.data._fetch import check_local, fetch_picture
from twohop.data._funnel import FunnelRow, pass_filters
from twohop.data._names import fold, gives_away, spellings
from twohop.data._pairing import Twin, can_pair, draw_entities, folded_answers, pair_questions, split_entities
from twohop.data._pictures import Pictures, decode_picture, open_pictures, write_pictures
from twohop.data._registry import SOURCES
from twohop.data._render import render_flag
from twohop.data._source import EntityRecord, FactRecord, PictureRecord, Source
from twohop.data._tables import check_entities, check_facts
from twohop.data.flags import FlagsSource
from twohop.data.table import TableEntities

__all__ = [
    "SOURCES",
    "EntityRecord",
    "FactRecord",
    "FlagsSource",
    "FunnelRow",
    "PictureRecord",
    "Pictures",
    "Source",
    "TableEntities",
    "Twin",
    "augment",
    "can_pair",
    "check_entities",
    "check_facts",
    "check_local",
    "decode_picture",
    "difference_hash",
    "draw_entities",
    "fetch_picture",
    "fold",
    "folded_answers",
    "gives_away",
    "near_duplicates",
    "open_pictures",
    "pair_questions",
    "pass_filters",
    "render_flag",
    "spellings",
    "split_entities",
    "write_pictures",
]
