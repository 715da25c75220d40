"""Writes functiongemma_prompts.json.xz: conversations, and the text of FunctionGemma's template for each.

    pip install jinja2
    PYTHONPATH=tests python tests/data/make_functiongemma_prompts.py chat_template.jinja

The template is the one published with google/functiongemma-270m-it (13,792 bytes). It is under the Gemma
terms of use and is not part of this repository."""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from pathlib import Path
from typing import Any

from support.chat_conversations import Conversations, official

OUT = Path(__file__).with_name("functiongemma_prompts.json.xz")
TEMPLATE_SHA256 = "db61fb01017bd82401d3ffca4f8e066cd56ff6d38d2a30c4058770c0bf7ab49b"
COUNT = 300


def conversation(source: Conversations) -> dict[str, Any]:
    """A result has a name and a form that the template accepts: a text, a mapping or a list of mappings."""
    found = source.conversation() | {"thinking": False}
    names: dict[str, str] = {}
    for message in found["messages"]:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] != "tool":
            continue
        message["name"] = names[message["tool_call_id"]]
        response = {"name": message["name"], "response": source.arguments()}
        bodies = [source.text(), source.arguments(), response, [response, source.arguments()]]
        message["content"] = source.random.choice(bodies)
    return found


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != TEMPLATE_SHA256:
        raise SystemExit("the template is another one than that of google/functiongemma-270m-it")
    source = Conversations(270, native=False)
    conversations = [conversation(source) for _ in range(COUNT)]
    prompts = [[found, official(text, found)] for found in conversations]
    OUT.write_bytes(lzma.compress(json.dumps(prompts, ensure_ascii=False).encode(), preset=9))


if __name__ == "__main__":
    main()
