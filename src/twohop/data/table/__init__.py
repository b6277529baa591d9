"""The user's own table."""

from twohop.data.table._cells import Rows, column_faults, fact_faults, read_rows, split_cell
from twohop.data.table._table import PICTURE, TableEntities

__all__ = ["PICTURE", "Rows", "TableEntities", "column_faults", "fact_faults", "read_rows", "split_cell"]
