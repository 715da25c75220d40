"""Writes gemma4_vocab.json.xz: the part of Gemma 4's vocabulary that its reference vectors can use.

Of the 262,144 pieces, it keeps those that occur in one of the texts, control pieces, user-defined pieces and
bytes, with their ids. No other piece can arise while such a text is encoded. Of the 514,906 merges, it keeps
those that make a kept piece, in their order. The texts are llama.cpp's 46 vectors and some more. All ids come
from Hugging Face ``tokenizers`` with the whole vocabulary.

    pip install tokenizers
    python tests/data/make_gemma4_vocab.py ggml-vocab-gemma-4.gguf    # beside it: .gguf.inp and .gguf.out

The three files come from llama.cpp's folder models/ (Apache-2.0; the vocabulary is that of
google/gemma-4-26B-A4B-it, Apache-2.0)."""

# ruff: noqa: RUF001 - the texts are meant to be unusual

import json
import lzma
import sys
from pathlib import Path

from gemlet.checkpoint.gguf_format import read_gguf

SPACE = "\u2581"
SEPARATOR = "\n__ggml_vocab_test__\n"
OUT = Path(__file__).with_name("gemma4_vocab.json.xz")

TEXTS = [
    "<bos><|turn>user\nHow are you?<turn|>\n<|turn>model\n",
    "<start_of_turn>user\n<end_of_turn> <unused7> <bos",
    '<|tool_call>call:f{a:<|"|>b<|"|>}<tool_call|><|channel>thought\n<channel|><eos>',
    " ".join(" " * n + "x" for n in range(1, 40)),
    "\n".join("\n" * n for n in range(12)) + "end",
    "\t\ta\t b \t\tc\t",
    "if (x > 1) {\n    return  y;\n\t}\r\n\r\n// done",
    "<table> </table><p>a</p> > </ <b>",
    "שלום עולם, מה שלומך? (abc) ١٢٣",
    "السلام عليكم ورحمة الله وبركاته",
    "नमस्ते दुनिया। ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ",
    "吾輩は猫である。名前はまだ無い。 你好，世界！ 안녕하세요 세계",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇦🇯🇵 e\u0301 ﬁ Å ½ ①②",
    "\x00\x01\x7f\u0080\u200b\u200f\u202e\ufeff\ufffd\U0010fffd",
    "a\u2581b \u2581 c",
    "1234567890 3.14159 1e-10 0xFF ٣ १२",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Привет, мир! Γειά σου Κόσμε",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 ꙮ ⠓⠊",
]


def reference(pieces: list[str], types: list[int], merges: list[str]):  # type: ignore[no-untyped-def]
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge.split(" ")) for merge in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    special = [piece for piece, kind in zip(pieces, types, strict=True) if kind in (3, 4)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer


def main(path: str) -> None:
    gguf = read_gguf(path)
    pieces = gguf.get("tokenizer.ggml.tokens", list)
    types = [int(t) for t in gguf.metadata["tokenizer.ggml.token_type"]]
    merges = gguf.get("tokenizer.ggml.merges", list)
    texts = Path(path + ".inp").read_bytes().decode().split(SEPARATOR)
    lines = Path(path + ".out").read_text().split("\n")[: len(texts)]
    ids = [[int(i) for i in line.split()] for line in lines]
    tokenizer = reference(pieces, types, merges)
    more = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    kept = {i: piece for i, piece in enumerate(pieces) if types[i] != 1}
    seen = "\0".join(texts + TEXTS).replace(" ", SPACE)
    kept |= {i: piece for i, piece in enumerate(pieces) if piece in seen}
    text_of = set(kept.values())
    data = {
        "size": len(pieces),
        "pieces": kept,
        "types": {i: types[i] for i in kept if types[i] != 1},
        "merges": [merge for merge in merges if merge.replace(" ", "", 1) in text_of],
        "vectors": list(zip(texts, ids, strict=True)),
        "more": list(zip(TEXTS, more, strict=True)),
    }
    raw = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    OUT.write_bytes(lzma.compress(raw, preset=9))
    counts = f"{len(kept)} pieces, {len(data['merges'])} merges"
    print(f"{OUT.name}: {counts}, {len(raw)} bytes, {OUT.stat().st_size} compressed")


if __name__ == "__main__":
    main(sys.argv[1])
