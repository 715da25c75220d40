"""The program that tries grammars; :mod:`gemlet.generation.grammar` starts it as its own process.

Each line of its input is a request in JSON, ``{"grammar": text, "control": [names]}`` with the control tokens
that it names, each line of its output the answer, ``{"error": text}``, which is empty for a grammar that can
be used.

llguidance bounds most of what a grammar costs, but not all: a deep chain of rules overflows the stack, and
that ends a process. Here it ends only this process. The system also ends it when a grammar has used its share
of CPU time or memory. A grammar that passes here is safe in the main process: the limits are the same, and
the stack there is larger.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from typing import Any

CPU_SECONDS = 1.0  # time for one grammar
HELLO = b"gemlet grammars\n"
MEMORY = 192 << 20  # bytes beside those of the process before its first grammar
STACK = 512 << 10
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # limits the expressions that the terminals are compiled to
    "step_lexer_fuel": 200_000,  # about 15 ms in a step
    "step_max_items": 50_000,  # items of the parser in a step: about 3 ms
    "max_items_in_row": 400,
    "max_lexer_states": 50_000,  # each takes 1 to 2 kB
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


def main() -> None:
    """Answers requests until the input ends. ``sys.argv`` lists the folders in which llguidance lies."""
    sys.path += sys.argv[1:]
    worker = GrammarWorker()
    worker.answer({"grammar": "start: /a/", "control": []})
    base = _address_space()
    for limit in ("CORE", "FSIZE", "NOFILE"):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (0, 0))
    if base:
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, resource.RLIM_INFINITY))
    threading.stack_size(STACK)
    output = sys.stdout.buffer
    output.write(HELLO)
    output.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(
            target=lambda line, to: to.append(worker.answer(json.loads(line))), args=(line, answers)
        )
        thread.start()
        thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(json.dumps(answers[0]).encode() + b"\n")
        output.flush()


def _address_space() -> int:
    """The bytes of this process's address space; 0 if the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


class Bytes:
    """A vocabulary of the 256 bytes, control tokens and an end, as llguidance wants it."""

    def __init__(self, control: list[str]) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + [name.encode() for name in control]
        self.eos_token_id = len(self.tokens)
        self.bos_token_id = None
        self.tokens.append(b"<end of text>")
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, data: bytes) -> list[int]:
        return list(data)


class GrammarWorker:
    """Compiles a grammar and asks for its first bytes.

    >>> GrammarWorker().answer({"grammar": "start: /[0-9]+/", "control": []})
    {'error': ''}
    """

    def __init__(self) -> None:
        import llguidance

        self._llguidance: Any = llguidance
        self._limits = llguidance.LLParserLimits(**LIMITS)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        try:
            module = self._llguidance
            tokenizer = module.LLTokenizer(module.TokenizerWrapper(Bytes(request["control"])))
            matcher = module.LLMatcher(tokenizer, request["grammar"], log_level=0, limits=self._limits)
            error = matcher.get_error()
            if not error:
                allowed = any(matcher.compute_bitmask())
                error = matcher.get_error() or ("" if allowed else "it matches no text")
        except Exception as problem:
            error = str(problem) or type(problem).__name__
        return {"error": error[:2000]}


if __name__ == "__main__":
    main()
