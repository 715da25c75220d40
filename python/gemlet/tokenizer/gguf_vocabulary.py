"""Reads the vocabulary in the metadata of a GGUF file."""

from __future__ import annotations

from gemlet.base.arrays import np
from gemlet.base.patterns import late_pattern
from gemlet.base.text import show
from gemlet.checkpoint.gguf_format import GGUFFile
from gemlet.errors import TokenizerError
from gemlet.tokenizer.merges import merge_strings
from gemlet.tokenizer.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from gemlet.tokenizer.vocabulary import CONTROL_NAMES, SPACE, Draft, Vocabulary

__all__ = ["vocabulary_of_gguf"]


_GGUF_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def vocabulary_of_gguf(gguf: GGUFFile) -> Vocabulary:
    """The vocabulary in the metadata of a GGUF file; errors are as in
    :func:`gemlet.tokenizer.files.read_vocabulary`."""
    file = gguf.path
    kind = gguf.get("tokenizer.ggml.model", str)
    merges = gguf.get("tokenizer.ggml.merges", list, [])
    if kind not in ("llama", "gemma4"):
        raise TokenizerError(f"{file}: tokenizer.ggml.model is {show(kind)}; expected llama or gemma4")
    if gguf.get("tokenizer.ggml.add_space_prefix", bool, False):
        raise TokenizerError(
            f"{file}: tokenizer.ggml.add_space_prefix is true; expected false, as in every Gemma"
        )
    tokens = gguf.get("tokenizer.ggml.tokens", list)
    if not all(isinstance(token, str) for token in tokens):
        wrong = next(token for token in tokens if not isinstance(token, str))
        raise TokenizerError(f"{file}: tokenizer.ggml.tokens has {show(wrong)}; expected only strings")
    types = gguf.get("tokenizer.ggml.token_type", np.ndarray).tolist()
    if len(types) != len(tokens) or not set(types) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise TokenizerError(
            f"{file}: tokenizer.ggml.token_type has {len(types)} types from {min(types, default=None)} to "
            f"{max(types, default=None)}; expected {len(tokens)} types from 1 to 6"
        )
    _name_bytes(file, tokens, types)
    if merges:
        _use_merged(merge_strings(file, merges), tokens, types)
    joined = [i for i, token in enumerate(tokens) if len(token) > 1 and types[i] != BYTE]
    joined = [i for i in joined if tokens[i] not in CONTROL_NAMES]
    if joined and all(types[i] != NORMAL for i in joined):
        raise TokenizerError(
            f"{file}: tokenizer.ggml.token_type has type 1 (NORMAL) for none of the {len(joined)} tokens of "
            "several characters, so it does not say what text is made of; convert the model again with "
            "llama.cpp's converter, or load the Hugging Face folder"
        )
    ids: dict[str, int | None] = {}
    for name, key in _GGUF_IDS.items():
        identifier = gguf.get(f"tokenizer.ggml.{key}_token_id", int, None)
        if identifier is not None and not 0 <= identifier < len(tokens):
            if name in ("bos", "unk"):
                last = len(tokens) - 1
                raise TokenizerError(
                    f"{file}: tokenizer.ggml.{key}_token_id is {identifier}; expected 0 to {last}"
                )
            identifier = None  # the model cannot write it
        ids[name] = identifier
    if ids["unk"] is None:
        ids["unk"] = types.index(UNKNOWN) if UNKNOWN in types else None
    for name, identifier in ids.items():
        if identifier is not None:
            types[identifier] = UNKNOWN if name == "unk" else CONTROL
    types = [CONTROL if t == UNKNOWN and i != ids["unk"] else t for i, t in enumerate(types)]
    draft = Draft(file, [token.replace(" ", SPACE) for token in tokens], types)
    by_name = draft.special_ids()
    ids = {name: by_name[name] if identifier is None else identifier for name, identifier in ids.items()}
    # Ollama calls Gemma 4's vocabulary "llama" and writes its merges; the merges decide how text is cut.
    if merges or kind == "gemma4":
        return draft.build_from_merges(merge_strings(file, gguf.get("tokenizer.ggml.merges", list)), ids)
    return draft.finish(ids, draft.build(_scores(gguf, draft), ids))


_BYTE = late_pattern("<0x[0-9A-Fa-f]{2}>")


def _name_bytes(file: str, tokens: list[str], types: list[int]) -> None:
    """Makes ``<0x00>`` to ``<0xFF>`` byte pieces, whatever type the file gives them."""
    places = [i for i, token in enumerate(tokens) if len(token) == 6 and _BYTE.fullmatch(token)]
    named = {int(tokens[i][3:5], 16) for i in places}
    if places and (len(named) < 256 or len(places) > 256):
        raise TokenizerError(
            f"{file}: tokenizer.ggml.tokens has {len(places)} byte pieces for {len(named)} different bytes; "
            "expected <0x00> to <0xFF>, each once, or no byte pieces"
        )
    for i in places:
        tokens[i] = f"<0x{tokens[i][3:5].upper()}>"
        types[i] = BYTE


def _use_merged(merges: list[str], tokens: list[str], types: list[int]) -> None:
    """Gives characters and pieces that merges make the type NORMAL if the file calls them unused."""
    used = {merge.replace(" ", "", 1) for merge in merges}
    for i, token in enumerate(tokens):
        if types[i] == UNUSED and (len(token) == 1 or token in used):
            types[i] = NORMAL


def _scores(gguf: GGUFFile, draft: Draft) -> list[float]:
    """The scores of a SentencePiece model. Of two possible merges, the one that makes the piece with the
    higher score is done first.

    A trainer gives its pieces falling scores. Tools that have no scores write the id of each piece instead,
    or the same number for all.
    """
    scores = gguf.get("tokenizer.ggml.scores", np.ndarray)
    count = len(draft.pieces)
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise TokenizerError(
            f"{draft.source}: tokenizer.ggml.scores has {np.isfinite(scores).sum()} finite numbers of "
            f"{scores.size}; expected {count}, all finite"
        )
    merged = [i for i, piece in enumerate(draft.pieces) if draft.types[i] == NORMAL and len(piece) > 1]
    ranks = scores[merged]
    if len(ranks) > 1 and (np.diff(ranks) >= 0).mean() > 0.5:  # a few pieces may be out of order
        raise TokenizerError(
            f"{draft.source}: tokenizer.ggml.scores do not fall with the id, so they are not the scores of a "
            "SentencePiece model, and the file has no tokenizer.ggml.merges; convert the model again with "
            "llama.cpp's converter, or load the Hugging Face folder"
        )
    return list(scores.tolist())
