"""Writes gemma4_prompts.json.xz: conversations, and the texts of Gemma 4's published templates for each.

    pip install jinja2
    PYTHONPATH=tests python tests/data/make_gemma4_prompts.py \\
        31B-april E4B-april 31B-july E4B-july 31B-may E4B-may

The files are ``chat_template.jinja`` of google/gemma-4-31B-it and google/gemma-4-E4B-it, from the end of
April 2026 (16,934 and 16,804 bytes), from July (18,683 and 18,569) and from May (17,466 and 17,336). E2B has
the template of E4B; the other sizes have that of 31B. The templates of May write the same texts as those of
April. The files are not part of this repository."""

from __future__ import annotations

import hashlib
import json
import lzma
import sys
from pathlib import Path

from support.chat_conversations import Conversations, official

OUT = Path(__file__).with_name("gemma4_prompts.json.xz")
SHA256 = (
    "94899c0f917d93f6fe81c95744d1e8ddab2d21d39228d2e4aec1fb2a25bff413",
    "33204f1acb5bd0002713e16a593847f24ceeafe711ed88bda2a352dc996a3373",
    "ae53464bf3be25802b3a5b37def7fd89667067d7577049b3b2d74c4d8de4c6d4",
    "0a2c8073c878ab1da004bee933a998606537bbb62016310352c7285c3f01c5b5",
    "36e3a42e5cf14cd0020e72d92e1fdd9970f59b82170e421f0cbe1bb42bead3f0",
    "2f1b4d75d067bae3fe44e676721c7f077d243bc007156cb9c2f8b5836613d082",
)
# The number of conversations of each form: results in the assistant's message, or messages of the role tool.
COUNT = 100


def main() -> None:
    templates = [Path(path).read_bytes() for path in sys.argv[1:]]
    if tuple(hashlib.sha256(data).hexdigest() for data in templates) != SHA256:
        raise SystemExit("these are other templates than those named above")
    prompts = []
    for native in (True, False):
        source = Conversations(4, native=native)
        for found in (source.conversation() for _ in range(COUNT)):
            *expected, large, small = [official(data.decode(), found) for data in templates]
            if [large, small] != expected[:2]:
                raise SystemExit("the templates of April and May differ in text")
            prompts.append([found, expected])
    OUT.write_bytes(lzma.compress(json.dumps(prompts, ensure_ascii=False).encode(), preset=9))


if __name__ == "__main__":
    main()
