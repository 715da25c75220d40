"""Writes gemma_prompts.json.xz: conversations, and the texts of the templates of Gemma 2, 3 and 3n for each.

    pip install jinja2
    PYTHONPATH=tests python tests/data/make_gemma_prompts.py google-gemma-2-2b-it.jinja \\
        convert_gemma3_weights.py convert_gemma3n_weights.py

The first file is the template published with google/gemma-2-2b-it (591 bytes, in llama.cpp's folder
models/templates). It is under the Gemma terms of use and is not part of this repository. The others are the
scripts in transformers (src/transformers/models/gemma3 and gemma3n) that wrote the published checkpoints with
their templates. ``_CHAT_TEMPLATE`` is read from them. Gemma 3 and 3n differ for images and audio."""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import jinja2

from support.chat_conversations import Conversations, official

OUT = Path(__file__).with_name("gemma_prompts.json.xz")
SHA256 = (
    "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6",
    "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4",
    "ac03dcb3b09726f1e50ac55ae58fc8d5930eadc3b3a12cb04286dc1d82ac8001",
)
COUNT = 400
Message = dict[str, Any]


def template(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return str(ast.literal_eval(assigned["_CHAT_TEMPLATE"]))


def conversation(source: Conversations, *, parts: bool) -> dict[str, Any]:
    """Alternating messages of user and assistant, some with a system text before them. Or a conversation that
    the templates refuse: any roles in any order. A system message is never at the place of an assistant's
    message, because the templates would accept that."""
    content = source.content if parts else source.text
    messages = [{"role": role, "content": content()} for role in ("user", "assistant") * 3]
    messages = messages[: source.random.randint(1, 6)]
    if source.chance(0.4):
        system: Any = source.text()
        messages.insert(0, {"role": "system", "content": system})
        if parts and source.chance(0.3):
            messages[0]["content"] = [{"type": "text", "text": system}]
    if source.chance(0.25):
        source.random.shuffle(messages)
        start = messages[0]["role"] == "system"
        odd = messages[1 + start :: 2]
        messages = [message for message in messages if message["role"] != "system" or message not in odd]
    return {
        "messages": messages,
        "tools": None,
        "thinking": False,
        "add_generation_prompt": source.chance(0.7),
    }


def rendered(text: str, found: dict[str, Any]) -> str | None:
    """The text of the template, or None if the template refuses the conversation."""
    try:
        return official(text, found)
    except jinja2.exceptions.TemplateError:
        return None


def main() -> None:
    templates = [template(Path(path)) for path in sys.argv[1:]]
    if tuple(hashlib.sha256(text.encode()).hexdigest() for text in templates) != SHA256:
        raise SystemExit("these are other templates than those named above")
    gemma2, gemma3, gemma3n = templates
    source = Conversations(2, native=False)
    prompts: dict[str, list[Any]] = {"gemma2": [], "gemma3": []}
    for name, text in (("gemma2", gemma2), ("gemma3", gemma3)):
        for _ in range(COUNT):
            found = conversation(source, parts=name == "gemma3")
            prompts[name].append([found, rendered(text, found)])
    if any(rendered(gemma3n, found) != expected for found, expected in prompts["gemma3"]):
        raise SystemExit("the templates of Gemma 3 and 3n differ in text")
    OUT.write_bytes(lzma.compress(json.dumps(prompts, ensure_ascii=False).encode(), preset=9))


if __name__ == "__main__":
    main()
