"""Sources outside the project, fetched once into a folder as a user's table; no step of the pipeline asks a network."""

import json
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from twohop.config import MADE_OF, FetchedSource, LinksSource, PopvqaSource, WikidataSource, WitSource
from twohop.data._downloads import write_whole
from twohop.data._web import Rules, Web
from twohop.data.fetched._links import fetch_links, link_hosts
from twohop.data.fetched._popvqa import fetch_popvqa
from twohop.data.fetched._wit import fetch_wit
from twohop.data.fetched._world import HOSTS, Services, fetch_wikidata

__all__ = ["Services", "fetch_entities", "rules_for"]


def rules_for(source: WikidataSource | PopvqaSource | LinksSource) -> Rules:
    """What the client may do for a source."""
    return Rules(contact=source.contact, hosts=link_hosts(source) if isinstance(source, LinksSource) else HOSTS)


def fetch_entities(
    source: FetchedSource, web: Web | None = None, services: Services | None = None, again: bool = False
) -> dict[str, int]:
    """Fetch what is not there yet, and write the tables; counts by outcome.

    Args:
        source: what is asked for, and the folder.
        web: the client; made as `rules_for` says where none is given.
        services: other addresses than the real ones.
        again: ask the services again, for a snapshot of today; pictures that are there are kept.

    Raises:
        ConfigError: a service is asked, and there is no contact.
        DataError: the folder holds the snapshot of another question, or a file of the source is not what it should be.
        ModelError: the hub does not give the files.
        Refused: a service does not answer.
    """
    folder = Path(source.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "fetch.lock"):
        made_of = source.made_of()  # before the files are read: of a later change the next run knows
        (folder / MADE_OF).unlink(missing_ok=True)
        if again:
            for page in folder.glob("pages/*.json"):
                page.unlink()
        counts = _fetch(source, web, services or Services(), again)
        write_whole(folder / MADE_OF, json.dumps(made_of, indent=1).encode())
    return counts


def _fetch(source: FetchedSource, web: Web | None, services: Services, again: bool) -> dict[str, int]:
    if isinstance(source, WitSource):
        return fetch_wit(source)
    if isinstance(source, PopvqaSource) and not source.contact:
        return fetch_popvqa(source, None, services)
    with nullcontext(web) if web is not None else Web(rules_for(source)) as client:
        if isinstance(source, PopvqaSource):
            return fetch_popvqa(source, client, services)
        if isinstance(source, LinksSource):
            return fetch_links(source, client)
        return fetch_wikidata(source, client, services, again)
