"""The embedded source: sovereign states and their flags."""

from twohop.data.flags._flags import FlagsSource

__all__ = ["FlagsSource"]
