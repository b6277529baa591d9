"""The user's own table."""

from twohop.data.table._table import TableEntities

__all__ = ["TableEntities"]
