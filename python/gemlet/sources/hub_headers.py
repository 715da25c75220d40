"""Fetches a model from the hub without its weights, for :func:`gemlet.inspect`: :func:`outline`.

The result is a folder. Each file of weights in this folder has the size of the real file, but only its
beginning is fetched: the header of a safetensors file, or the metadata of a GGUF file. The rest is a hole,
which takes no disk space. HTTP range requests fetch the beginnings. If the server sends more bytes than
requested, they are not read.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from gemlet.base.patterns import late_pattern
from gemlet.checkpoint.gguf_format import parse_gguf
from gemlet.checkpoint.safetensors_files import MAX_HEADER_BYTES
from gemlet.errors import GemletError, HubError, ModelFileError
from gemlet.sources.hub import ChosenFiles, choose, explain, fetch
from gemlet.tokenizer.stored import STORED_FILE
from gemlet.weights.gguf_names import ROPE_FREQS

__all__ = ["outline"]

# Bytes of the first request. Of a GGUF file, each further request doubles the number of fetched bytes.
_FIRST_BYTES = {"safetensors": 1 << 17, "gguf": 1 << 20}
_MAX_METADATA_BYTES = 1 << 27
_MAX_VECTOR_BYTES = 1 << 20
_RANGE = late_pattern(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")


@contextmanager
def outline(
    name: str,
    *,
    revision: str | None,
    token: str | bool | None,
    mmproj: bool = True,
    as_drafter: bool = False,
) -> Iterator[str]:
    """A context manager that yields the path of the folder (or the GGUF file) of the model ``name``. The
    folder is removed when the context ends. Files that are in the hub's cache are complete. With ``mmproj``,
    the folder also has the file of a GGUF model's towers.

    Raises the errors of :func:`gemlet.download`, and :class:`HubError` if the server does not send parts of
    files, or sends other parts than requested.
    """
    choice = choose(name, revision, token, mmproj=mmproj, as_drafter=as_drafter)
    if choice.is_here:
        yield fetch(choice, token)
        return
    weights = [file for file in choice.files() if _is_weights(file)]
    snapshot = fetch(choice, token, without=[glob.escape(file) for file in weights], whole=True)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gemlet-") as folder:
        try:
            for file in choice.files():
                here, there = os.path.join(folder, file), os.path.join(snapshot, file)
                os.makedirs(os.path.dirname(here), exist_ok=True)
                if os.path.isfile(there):
                    os.symlink(os.path.abspath(there), here)
                elif file in weights:
                    _fetch_head(here, choice, file, os.path.basename(snapshot), token)
            yield folder if choice.file is None else os.path.join(folder, choice.file)
        except OSError as problem:
            raise HubError(f"{choice.repository}: {problem.strerror or problem}") from problem
        except GemletError as problem:  # the message has the temporary folder, which the caller does not know
            message = str(problem).replace(folder, choice.repository)
            raise type(problem)(message) from problem


def _is_weights(file: str) -> bool:
    return file.endswith((".safetensors", ".gguf")) and file != STORED_FILE


def _fetch_head(path: str, choice: ChosenFiles, file: str, commit: str, token: str | bool | None) -> None:
    """Makes the file ``path``, with the beginning of ``file`` and then a hole up to the size of ``file``."""
    import huggingface_hub

    helpers: Any = huggingface_hub.utils
    where = f"{choice.repository}/{file}"
    with open(path, "x+b") as opened:
        part = _Part(
            opened,
            where,
            huggingface_hub.hf_hub_url(choice.repository, file, revision=commit),
            helpers.build_hf_headers(token=token),
        )
        try:
            if file.endswith(".gguf"):
                _read_metadata(part, where)
            else:
                _read_header(part)
            opened.truncate(part.size)
        except (GemletError, OSError):
            raise
        except Exception as problem:  # errors have no common class, as in fetch()
            raise HubError(f"{where}: {explain(problem, choice.repository, commit)}") from problem


class _Part:
    """The beginning of a file on the server, stored in ``opened``. ``size`` is the size of the whole file."""

    def __init__(self, opened: BinaryIO, where: str, url: str, headers: dict[str, str]) -> None:
        self.opened = opened
        self.size = 0
        self._where = where
        self._url = url
        self._headers = headers

    def grow(self, end: int) -> int:
        """Fetches bytes so that the first ``end`` bytes are stored. Returns the number of stored bytes."""
        begin = self.opened.seek(0, os.SEEK_END)
        end = min(end, self.size or end)
        return begin if begin >= end else begin + self._append(begin, end)

    def append_at(self, begin: int, nbytes: int) -> None:
        """Fetches ``nbytes`` bytes at ``begin``. The bytes before them that were not fetched stay a hole."""
        self.opened.seek(begin)
        self._append(begin, begin + nbytes)

    def _append(self, begin: int, end: int) -> int:
        from huggingface_hub import constants, get_session, hf_raise_for_status

        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream(
            "GET", self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            if response.status_code >= 400:
                response.close()  # do not read the response's text, which may have any length
                hf_raise_for_status(response)
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or match is None or int(match[1]) != begin:
                raise HubError(
                    f"{self._where}: the server does not send parts of files (HTTP {response.status_code}); "
                    "first download the model with `gemlet download`"
                )
            size = int(match[2])
            if self.size not in (0, size):
                raise HubError(f"{self._where}: has {size} bytes, but had {self.size} before; try again")
            self.size = size
            wanted, got = min(end, size) - begin, 0
            for chunk in response.iter_raw():
                got += len(chunk)
                if got > wanted:
                    break
                self.opened.write(chunk)
            if got != wanted:
                more = "more" if got > wanted else f"{got}"
                raise HubError(
                    f"{self._where}: asked for {wanted} bytes, but the server sent {more}; try again"
                )
            self.opened.flush()
            return got


def _read_header(part: _Part) -> None:
    part.grow(_FIRST_BYTES["safetensors"])
    part.opened.seek(0)
    length = int.from_bytes(part.opened.read(8), "little")
    if length <= min(MAX_HEADER_BYTES, part.size - 8):  # otherwise opening the file raises the error
        part.grow(8 + length)


def _read_metadata(part: _Part, where: str) -> None:
    end, before = _FIRST_BYTES["gguf"], ""
    while True:
        have = part.grow(end)
        try:
            gguf = parse_gguf(where, part.opened.fileno(), size=part.size)
            break
        except ModelFileError as problem:
            # The part may be too short. If the error stays the same with more bytes, it has another reason.
            if have == part.size or str(problem) == before:
                raise
            before = str(problem)
        if have >= _MAX_METADATA_BYTES:
            raise HubError(
                f"{where}: the metadata has more than {have} bytes; expected less, as in every real model. "
                "Take another file of the model"
            )
        end *= 2
    frequencies = gguf.tensors.get(ROPE_FREQS)  # the values of this tensor are part of the configuration
    if frequencies is not None and frequencies.nbytes <= _MAX_VECTOR_BYTES:
        part.append_at(frequencies.offset, frequencies.nbytes)
