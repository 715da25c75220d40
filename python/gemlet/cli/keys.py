"""``gemlet keys``: creates, lists and revokes the API keys of ``gemlet serve``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time

from gemlet.cli.common import print_table
from gemlet.server.keys import KeyStore, Limits

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    store = KeyStore(arguments.db, create=arguments.action == "create")
    try:
        if arguments.action == "create":
            limits = Limits(
                **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)}
            )
            rights, models = arguments.rights or ["use"], arguments.models or []
            print(store.create(arguments.name, limits, rights=rights, models=models))
        elif arguments.action == "revoke":
            store.revoke(arguments.name)
        else:
            _list(store, as_json=arguments.json)
    finally:
        store.close()
    return 0


def _list(store: KeyStore, *, as_json: bool) -> None:
    keys = store.all()
    if as_json:
        print(json.dumps({"keys": keys}))
        return
    rows = [
        [
            key["name"],
            key["id"],
            _day(key["created"]),
            "-" if key["revoked"] is None else _day(key["revoked"]),
            " ".join(key["rights"]),
            ", ".join(f"{name} {value}" for name, value in key["limits"].items()) or "-",
        ]
        for key in keys
    ]
    print_table(["name", "id", "created", "revoked", "rights", "limits"], rows)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
