"""Section of the bridge between the engines."""

from typing import Literal

from pydantic import Field

from twohop.config._base import Section

Library = Literal["torch", "transformers", "numpy", "polars", "h5py", "pillow", "matplotlib"]


class HashCode(Section):
    """What counts as a change of code, besides the code itself."""

    rerun_on_versions: list[Library] = Field(max_length=8)
    """Libraries whose upgrade is a reason to run the steps again that use them; other upgrades are recorded only."""
