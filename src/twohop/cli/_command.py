"""What all groups of commands share."""

import argparse
from collections.abc import Callable

Arguments = argparse.Namespace
Adder = Callable[..., argparse.ArgumentParser]
"""`add_parser` of the parser's commands."""


def command(
    add: Adder,
    name: str,
    text: str,
    call: Callable[[Arguments], None],
) -> argparse.ArgumentParser:
    sub = add(name, help=text.replace("%", "%%"), description=text.replace("%", "%%"))
    sub.set_defaults(call=call, command=name)
    return sub
