"""Where a published data set's files are: the user's folder, or a folder that the hub's copy is fetched into."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from twohop.config import PopvqaSource, WitSource
from twohop.errors import DataError


def files_of(source: PopvqaSource | WitSource, patterns: Sequence[str]) -> Path:
    """The folder that holds a data set's files.

    Args:
        source: which folder, or which repository and commit.
        patterns: of the files that are fetched.

    Raises:
        DataError: no such folder.
        ModelError: the hub does not give them.
    """
    if source.hub is None:
        folder = Path(str(source.files))
        if not folder.is_dir():
            raise DataError("no such folder", str(folder), "correct curate_entities.source.files")
        return folder
    from twohop.data._hub import download_data

    chosen = sha256("\n".join(patterns).encode()).hexdigest()[:8]
    folder = Path(source.folder) / "hub" / f"{source.hub.revision}-{chosen}"
    download_data(source.hub.id, source.hub.revision, patterns, folder)
    return folder
