"""Folders of models that come from a hub. This room opens no connection: whoever runs it says how to download."""

from collections.abc import Callable
from pathlib import Path

from twohop.config import HubRepository
from twohop.errors import ModelError

Fetcher = Callable[[str, str, Path], None]
"""(repository, commit, folder): fills the folder and leaves its files' records beside it, as `<folder>.files.json`."""
_fetchers: list[Fetcher] = []


def set_fetcher(fetch: Fetcher | None) -> None:
    """How models are downloaded in this process; None: not at all."""
    _fetchers[:] = [] if fetch is None else [fetch]


def snapshot_folder(root: Path, source: HubRepository) -> Path:
    """Where a repository's files at a commit lie below the cache; models that share it link to them."""
    return root / "hub" / source.id.replace("/", "--") / source.revision


def fetched(root: Path, source: HubRepository) -> Path:
    """The folder of a repository at a commit, downloaded when absent; its files are not compared here.

    Raises:
        ModelError: it is absent and cannot be downloaded.
    """
    path = snapshot_folder(root, source)
    if not is_fetched(path):
        if not _fetchers:
            raise ModelError(f"{source.id} is not on this disk", str(path), "download it: twohop models fetch")
        _fetchers[0](source.id, source.revision, path)
    return path


def is_fetched(path: Path) -> bool:
    """Whether the folder is there, whole."""
    return path.is_dir() and path.with_name(f"{path.name}.files.json").is_file()
