"""The sources that `curate_entities.source` can name."""

from collections.abc import Mapping
from types import MappingProxyType

from twohop.data._source import Source
from twohop.data.flags import FlagsSource

SOURCES: Mapping[str, type[Source]] = MappingProxyType({"flags": FlagsSource})
"""Name in params.yaml -> source."""
