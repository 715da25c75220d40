"""Writes special_prompts.json: conversations, and the texts of ShieldGemma's and TranslateGemma's templates
for them.

    pip install jinja2
    python tests/data/make_special_prompts.py shieldgemma-9b.jinja translategemma-4b-it.jinja

The templates are those published with google/shieldgemma-9b and google/translategemma-4b-it. They are under
the Gemma terms of use and are not part of this repository; text-generation-inference has the first in its
tests.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import jinja2

OUT = Path(__file__).with_name("special_prompts.json")
SHA256 = {
    "shieldgemma": "3a0e39b86e2078b8eac1dabd9f0c098e23aef9cb79305cfe23e5e26f582e723b",
    "translategemma": "ce7c2789c176df496c89f407250210107ab7cf7d6f8d378a9182de1f4f4b182b",
}
COUNT = 12
CODES = ("de", "de_AT", "en", "en-GB", "pt-BR", "zh-Hant", "fil-PH", "vo")
Message = dict[str, Any]


def words(source: random.Random) -> str:
    return "".join(source.choice("ab \n\t{}'é<end_of_turn>") for _ in range(source.randrange(30)))


def main() -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    texts = {
        name: Path(path).read_text(encoding="utf-8") for name, path in zip(SHA256, sys.argv[1:], strict=True)
    }
    for name, text in texts.items():
        found = hashlib.sha256(text.strip().encode()).hexdigest()
        assert found == SHA256[name], (name, found)
    guard, translator = (environment.from_string(text) for text in texts.values())
    source = random.Random(1)
    cases: dict[str, list[dict[str, Any]]] = {name: [] for name in SHA256}
    for _ in range(COUNT):
        roles = ("user", "assistant", "user", "assistant")[: source.randint(1, 4)]
        talk: list[Message] = [{"role": role, "content": words(source)} for role in roles]
        guideline = words(source)
        judged = guard.render(bos_token="<bos>", messages=talk, guideline=guideline)
        cases["shieldgemma"].append({"messages": talk, "guideline": guideline, "text": judged})
        talk = [dict(message) for message in talk]
        for message in talk[::2]:
            codes = {name: source.choice(CODES) for name in ("source_lang_code", "target_lang_code")}
            message["content"] = [{"type": "text", "text": message["content"], **codes}]
        options = {"messages": talk, "add_generation_prompt": source.random() < 0.7}
        asked = translator.render(bos_token="<bos>", **options)
        cases["translategemma"].append({**options, "text": asked})
    names = dict(re.findall(r'^    "([^"]+)": "([^"]+)",$', texts["translategemma"], re.MULTILINE))
    languages = {code: names[code] for code in (code.replace("_", "-") for code in CODES)}
    written = {"sha256": SHA256, "languages": languages, **cases}
    OUT.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
