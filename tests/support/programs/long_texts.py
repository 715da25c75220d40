"""Functions that product/test_too_long.py runs in separate processes."""

from __future__ import annotations

import os
import signal
import threading
import time

import gemlet

# A text of newlines cannot be encoded in pieces, because the demo model has tokens of several newlines.
UNCUT = ("\n", 4_000_000)


def interrupt_encoding(text: str, times: int) -> float:
    """Simulates Ctrl-C during the encoding of ``text``, repeated ``times`` times. Returns the seconds of
    processor time from the Ctrl-C to the end of the encoding."""
    tokenizer = gemlet.load().tokenizer
    assert tokenizer is not None
    tokenizer.encode("the")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed: list[float] = []

    def press() -> None:
        pressed.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    long_text = text * times
    threading.Timer(0.05, press).start()
    try:
        tokenizer.encode(long_text)
    except KeyboardInterrupt:
        return time.process_time() - pressed[0]
    raise AssertionError("Ctrl-C did not interrupt the encoding")


def exit_in_a_long_call() -> None:
    """Ends the process while a daemon thread is in the longest possible call of SentencePiece."""
    tokenizer = gemlet.load().tokenizer
    assert tokenizer is not None
    thread = threading.Thread(target=tokenizer.encode, args=(UNCUT[0] * UNCUT[1],), daemon=True)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
