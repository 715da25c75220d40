"""``gemlet usage``: shows the requests and tokens that each API key of ``gemlet serve`` has used."""

from __future__ import annotations

import argparse
import json

from gemlet.base.text import show
from gemlet.cli.common import print_table
from gemlet.errors import InvalidRequestError
from gemlet.server.keys import KeyStore

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    store = KeyStore(arguments.db)
    try:
        wanted = None
        if arguments.key is not None:
            known = {name: key["id"] for key in store.all() for name in (key["name"], key["id"])}
            if arguments.key not in known:
                raise InvalidRequestError(f"there is no key {show(arguments.key)}")
            wanted = known[arguments.key]
        found = store.usage(wanted, days=arguments.days)
    finally:
        store.close()
    if arguments.json:
        print(json.dumps({"usage": found}))
        return 0
    titles = ["day", "key", "model", "requests", "prompt_tokens", "completion_tokens"]
    rows = [[str(row[title]) for title in titles] for row in found]
    total = ["in all", "", "", *(str(sum(row[title] for row in found)) for title in titles[3:])]
    print_table(titles, [*rows, total], right={3, 4, 5})
    return 0
