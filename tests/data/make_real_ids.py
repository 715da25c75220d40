"""Writes ``real_ids.json.xz``: texts and their ids in llama.cpp, with the vocabulary of a real Gemma 3 270M,
and a prompt that llama.cpp continues.

    pip install llama-cpp-python==0.3.36
    python tests/data/make_real_ids.py gemma-3-270m.gguf

The README says how to get the model. Two kinds of text are left out, because llama.cpp reads them
differently: it adds a second <bos> to a text that begins with <bos>, and it reads U+2581, which stands for a
space in vocabularies, as a space. gemlet follows SentencePiece.
"""
# ruff: noqa: RUF001

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

import llama_cpp

HERE = Path(__file__).resolve().parent
PROMPT = "Once upon a time, a small fox set out to see the sea."
WRITTEN = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t",
    " \t \n \r\n x",
    "a",
    " a",
    "a ",
    "Hello world",
    "hello   world",
    "The quick brown fox jumps over the lazy dog.",
    "It's 3.14159, isn't it? 1234567890 1,000,000 0x7fff 1e-5",
    'def f(x):\n    return {"a": [x ** 2 for _ in range(10)]}\n\n\tif x:\n\t\tpass\n',
    '<div class="x">&amp;</div><!-- y -->',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "SELECT * FROM t WHERE a >= 'b''c'; -- d",
    "Straße, Ärger, ÆØÅ, naïve café, Łódź, Čeština, İstanbul",
    "Ελληνικά, Русский язык, українська, български",
    "日本語のテキスト。中文文本，繁體字。한국어 텍스트",
    "हिन्दी पाठ, বাংলা, தமிழ், తెలుగు, ಕನ್ನಡ, മലയാളം, ไทย, ქართული, հայերեն",
    "עברית ועוד, العربية نص طويل, فارسی, اردو",
    "😀😃👩‍👩‍👧‍👦🏳️‍🌈👍🏽 🇩🇪 ✈️ ♥",
    "e\u0301 \u00e9 \u0301 \u200b\u200d\ufeff\u00a0\u2003x\u3000y",
    "∑ x² ≤ ∞, α→β, ½ + ⅓, ℝⁿ, ∀ε>0 ∃δ",
    "𝕬𝖇𝖈 𐍈 𓀀 🀄 \U0010fffd",
    "\x00\x01\x1b[31m\x7f",
    "<0x41> <0x0A> <unk> <pad> <mask> [multimodal]",
    "<eos> x",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "a<start_of_image>b<unused0><unused5>c",
    "<end_of_turn >< start_of_turn>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "-" * 80 + "=" * 81 + " " * 40 + "." * 17,
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore.",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁ ﬂ Ⅳ ① ㎏",
    "don't DON'T Don't 'tis o'clock rock'n'roll",
    "CamelCaseWords snake_case_words kebab-case-words SCREAMING_CASE",
    "xyzzyqwv jkjkjk zzzzzx",
]


def random_texts(count: int) -> list[str]:
    """Texts of pieces in unusual combinations."""
    chance = random.Random(1)
    parts = [
        " ",
        "  ",
        "\n",
        "a",
        "the",
        "The",
        "é",
        "日",
        "😀",
        "1",
        "23",
        "<",
        ">",
        "'s",
        ".",
        "\t",
        "ing",
        "\u0301",
    ]
    return ["".join(chance.choices(parts, k=chance.randrange(1, 40))) for _ in range(count)]


def main() -> None:
    heldout = (HERE / "heldout.txt").read_text("utf-8")
    texts = [*WRITTEN, *random_texts(60), *(text for text in heldout.split("\n\n")[:40] if text)]
    model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)

    def ids_of(text: str) -> list[int]:
        return model.tokenize(text.encode(), add_bos=True, special=True)

    found = {"texts": [[text, ids_of(text)] for text in texts], "heldout": ids_of(heldout)[:4096]}
    whole = llama_cpp.Llama(sys.argv[1], n_ctx=256, n_threads=1, n_batch=64, verbose=False)
    written = whole.generate(ids_of(PROMPT), temp=0.0, top_k=1, repeat_penalty=1.0)
    found["prompt"], found["greedy"] = PROMPT, [next(written) for _ in range(32)]
    with lzma.open(HERE / "real_ids.json.xz", "wt", encoding="utf-8") as file:
        json.dump(found, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
