"""Structured output: :class:`Grammar` says which tokens may come next.

llguidance reads a grammar over the bytes of the tokens. Its copy of the vocabulary (for 262,144 tokens a
second of work and 100 MB) is kept as long as the tokenizer lives, and so are the latest grammars.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from gemlet.base.arrays import NDArray, np
from gemlet.base.limited_process import LimitedProcess, folder_of
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError
from gemlet.generation import grammar_worker
from gemlet.generation.grammar_text import GrammarText
from gemlet.tokenizer.tokenizer import Tokenizer

__all__ = ["Grammar", "GrammarState", "TokenMask", "compile_grammar"]

TokenMask = NDArray["np.uint32"]  # a bit for each id, set if it may come next; the first is lowest

EXTRA = "pip install 'llguidance>=1.9', the extra \"grammar\" of gemlet"
_KEPT = 16  # grammars of a tokenizer
_MOST_ANSWER = 32 << 10


class Grammar:
    """A compiled grammar; made by :func:`compile_grammar`. Any number of texts may follow it.

    Attributes:
        name: the argument that it comes from, for error messages.
        text_ids: the ids that add text.
        usable_ids: these ids, and the control tokens that the grammar names.
        size: the number of ids in the vocabulary.
    """

    def __init__(self, text: GrammarText, vocabulary: _Vocabulary, matcher: Any) -> None:
        self.name = text.name
        self.size = vocabulary.size
        self.text_ids = vocabulary.text_ids
        self.usable_ids = vocabulary.text_ids | bits_of(vocabulary.ids_of(text.control), vocabulary.size + 1)
        self._matcher = matcher

    def begin(self) -> GrammarState:
        """The state at the beginning of a text."""
        with _lock:
            return GrammarState(self, self._matcher.deep_copy())


class GrammarState:
    """The position of a text in its grammar."""

    def __init__(self, grammar: Grammar, matcher: Any) -> None:
        self.grammar = grammar
        self._matcher = matcher
        self._buffer = np.zeros((grammar.size + 32) // 32, np.int32)

    def copy(self) -> GrammarState:
        """An independent copy."""
        return GrammarState(self.grammar, self._matcher.deep_copy())

    def push(self, token_id: int) -> None:
        """Advances by a token that the last mask allows."""
        if not self._matcher.consume_token(token_id):
            raise self._error()

    def next_tokens(self) -> tuple[TokenMask, bool]:
        """The ids that may come next, and whether the text may end here.

        Raises:
            InvalidRequestError: the grammar has become too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer.nbytes)
        if self._matcher.is_error():
            raise self._error()
        found = self._buffer.view(np.uint32)
        end = self.grammar.size
        may_end = bool(found[end // 32] >> (end % 32) & 1)
        return found & self.grammar.usable_ids, may_end

    def _error(self) -> InvalidRequestError:
        return _refused(self.grammar.name, self._matcher.get_error())


def bits_of(ids: Iterable[int], size: int) -> TokenMask:
    """A mask of ``size`` ids in which ``ids`` are set.

    >>> bits_of([0, 33], 40).tolist()
    [1, 2]
    """
    flags = np.zeros((size + 31) // 32 * 32, np.uint8)
    flags[[one for one in ids if one < size]] = 1
    return np.packbits(flags, bitorder="little").view(np.uint32)


def compile_grammar(text: GrammarText, tokenizer: Tokenizer) -> Grammar:
    """The grammar over the tokens of ``tokenizer``. The grammar is first tried in a separate process, because
    a stranger's grammar may take any amount of time or crash the process.

    Raises:
        UnsupportedError: llguidance is not installed.
        InvalidRequestError: the grammar is wrong, or takes too much time or memory.
    """
    with _lock:
        vocabulary = _vocabularies.get(tokenizer)
        if vocabulary is None:
            vocabulary = _vocabularies[tokenizer] = _Vocabulary(tokenizer)
    return vocabulary.compile(text)


class _Vocabulary:
    """The tokens of a tokenizer in llguidance's form. The end of the text follows the last one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._llguidance = _import()
        self.size = tokenizer.vocab_size
        self.names = tokenizer.named_tokens
        tokens = tokenizer.token_bytes()
        self.text_ids = bits_of((i for i, data in enumerate(tokens) if data), self.size + 1)
        for name, identifier in self.names.items():
            tokens[identifier] = tokens[identifier] or name.encode()
        self._wrapped = _Tokens(tokens, special=sorted(tokenizer.control_ids))
        self._tokenizer: Any = None
        self._grammars: OrderedDict[GrammarText, Grammar] = OrderedDict()

    def ids_of(self, names: Iterable[str]) -> list[int]:
        return [self.names[name] for name in names]

    def compile(self, text: GrammarText) -> Grammar:
        with _lock:
            known = self._grammars.get(text)
            if known is not None:
                self._grammars.move_to_end(text)
                return known
        _try(text)
        module = self._llguidance
        with _lock:
            if self._tokenizer is None:
                self._tokenizer = module.LLTokenizer(module.TokenizerWrapper(self._wrapped))
                self._wrapped = _Tokens([], [])
        limits = module.LLParserLimits(**grammar_worker.LIMITS)
        matcher = module.LLMatcher(self._tokenizer, text.lark, log_level=0, limits=limits)
        if matcher.is_error():
            raise _refused(text.name, matcher.get_error())
        grammar = Grammar(text, self, matcher)
        with _lock:
            self._grammars[text] = grammar
            while len(self._grammars) > _KEPT:
                self._grammars.popitem(last=False)
        return grammar


class _Tokens:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, tokens: list[bytes], special: list[int]) -> None:
        self.eos_token_id = len(tokens)
        self.bos_token_id = None
        self.tokens = [*tokens, b"<end of text>"]
        self.special_token_ids = [*special, len(tokens)]

    def __call__(self, data: bytes) -> list[int]:
        raise NotImplementedError  # llguidance encodes only text that it forces, and it forces none here


def _import() -> Any:
    try:
        import llguidance
    except ImportError as problem:
        raise _absent(str(problem)) from None
    if not all(hasattr(llguidance, name) for name in ("LLMatcher", "LLParserLimits", "TokenizerWrapper")):
        raise _absent("the installed version is too old")  # or the empty one that some platforms have
    return llguidance


def _absent(why: str) -> UnsupportedError:
    return UnsupportedError(f"json_schema, regex, choice and grammar need llguidance ({why}): {EXTRA}")


def _try(text: GrammarText) -> None:
    line = json.dumps({"grammar": text.lark, "control": text.control}).encode() + b"\n"
    answer = _process.ask(line, _MOST_ANSWER)
    if answer is None:
        raise InvalidRequestError(
            f"{text.name}: the grammar takes too much time or memory, or is nested too deeply; simplify it"
        )
    if answer["error"]:
        raise _refused(text.name, answer["error"])


def _refused(name: str, error: str) -> InvalidRequestError:
    """The error of llguidance, shortened to its first line and the line with the reason."""
    first, *rest = error.replace("<non-verbose/>", "").strip().splitlines() or ["it cannot be used"]
    if first == "NoExtensionBias":  # nothing may come at the beginning, not even the end
        first = "no text has this form: it allows no character, or it never ends"
    reason = [line.strip() for line in rest if line.startswith("error:")]
    return InvalidRequestError(f"{name}: {'; '.join([first[:300], *reason[:1]])[:500]}")


def _folders() -> list[str]:
    _import()
    folder = folder_of("llguidance")
    if folder is None:
        raise _absent("it has no folder")
    return [folder]


def _not_started(why: str) -> GemletError:
    return UnsupportedError(
        f"json_schema, regex, choice and grammar: the process that tries grammars did not start "
        f"({sys.executable or 'this program'} -I {grammar_worker.__file__}: {why})"
    )


_lock = (
    threading.RLock()
)  # guards the variables below; also held while llguidance is imported or holds its own lock
_vocabularies: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()
_process = LimitedProcess(
    grammar_worker.__file__, grammar_worker.HELLO, _folders, _not_started
).end_with_python()
if hasattr(os, "register_at_fork"):  # otherwise a child would wait forever for another thread's work
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
