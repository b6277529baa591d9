"""Entity tables, facts and pictures: where they come from, how they are checked and read."""

from twohop.data._render import render_flag

__all__ = ["render_flag"]
