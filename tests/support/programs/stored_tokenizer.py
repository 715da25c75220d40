"""Functions that tokenizer/test_stored_tokenizer.py runs in separate processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from gemlet.tokenizer import Tokenizer


def encode_in_threads_and_a_fork(source: Path, stored: Path) -> None:
    expected = Tokenizer.from_file(source).encode("the door")
    for _ in range(20):
        tokenizer = Tokenizer.from_file(stored)
        child = os.fork()
        if child == 0:
            os._exit(tokenizer.encode("the door") != expected)
        found: list[list[int]] = []

        def encode(tokenizer: Tokenizer = tokenizer, found: list[list[int]] = found) -> None:
            found.append(tokenizer.encode("the door"))

        threads = [threading.Thread(target=encode) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4
        assert os.waitpid(child, 0)[1] == 0
