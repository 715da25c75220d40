"""The log. Each line is a JSON object with lengths, ids and times. It has no text of a prompt or a reply,
unless the administrator asked for it."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gemlet.server.call import Call

__all__ = ["JSONLines", "log_call", "log_text", "to_stderr"]

_log = logging.getLogger("gemlet.server")


class JSONLines(logging.Formatter):
    """Formats a record as a line with its time, level and message, and the ``fields`` of its ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            # Messages of asyncio quote errors, which may quote prompts.
            "event": "asyncio" if record.name == "asyncio" else record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def to_stderr() -> logging.Handler:
    """A handler for the loggers of gemlet's server and of the libraries that it uses."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    return handler


def log_call(call: Call) -> None:
    """Logs a request that has ended."""
    fields = {
        "id": call.id,
        "key": None if call.key is None else call.key.id,
        "method": call.method,
        "route": call.route or None,
        "status": call.status,
        "problem": call.problem or None,
        "model": call.model or None,
        "prompt_tokens": call.prompt_tokens,
        "cached_tokens": call.cached_tokens,
        "completion_tokens": call.completion_tokens,
        "finish": call.finish or None,
        "filter": call.verdicts or None,
        "first_token_seconds": None if call.first_token is None else round(call.first_token, 6),
        "seconds": round(call.seconds(), 6),
    }
    _log.info(
        "request", extra={"fields": {name: value for name, value in fields.items() if value is not None}}
    )


def log_text(name: str, texts: Sequence[Mapping[str, Any]]) -> None:
    """Logs the texts of the request with the id ``name``. It is called only if the administrator asked for
    it."""
    _log.info("text", extra={"fields": {"id": name, "prompts": list(texts)}})
