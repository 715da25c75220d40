"""Writes a session to a file (:func:`write_session`), and reads it (:func:`read_session`). The file has:

    gemlet session 1 NNNN\\n      the version of the file, and the size of the JSON object in bytes
    a JSON object                the messages and all tokens; then zeros up to a multiple of 64 bytes
    records                      the keys and values of the tokens, as the core writes them

The first two parts are the whole session. The records save computation: they are used only with the same
model, adapter and kernels with which they were computed.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from typing import Any

from gemlet import _core
from gemlet.base.files import checked_path, open_regular, read_from_start
from gemlet.base.patterns import late_pattern
from gemlet.base.records import record, replace
from gemlet.base.strict_json import parse_json_object
from gemlet.base.text import show
from gemlet.chat.messages import checked_messages
from gemlet.errors import InvalidRequestError, MemoryLimitError, ModelFileError
from gemlet.generation.token_ids import token_id_array
from gemlet.model.requests import Requests

__all__ = ["SessionState", "read_session", "write_session"]

_VERSION = 1
_FIRST = late_pattern(rb"gemlet session (\d{1,6}) (\d{1,9})\n")
_FIRST_BYTES = 64
_MOST_BYTES = 64 << 20  # the most bytes of the JSON object


@record(frozen=True)
class SessionState:
    """The state of a session.

    Attributes:
        messages: the messages of a conversation; empty for a text.
        ids: the token ids of the last prompt and its continuation, int32 ``[n]``.
        is_text: whether the session is a text and not a conversation.
        adapter: the name of the adapter, or None.
    """

    messages: list[dict[str, Any]]
    ids: array[int]
    is_text: bool
    adapter: str | None


def write_session(path: str | os.PathLike[str], requests: Requests, state: SessionState) -> None:
    """Writes the file ``path``. If writing fails, an existing file stays unchanged. Raises
    :class:`ModelFileError` if the file cannot be written, and :class:`InvalidRequestError` if a message has
    an object that a file cannot hold."""
    path = checked_path("path", path, "the path of a file")
    adapter = requests.adapters.find(state.adapter).core
    described = {
        "kind": "text" if state.is_text else "conversation",
        "source": requests.reader.resident.name,
        "vocab_size": requests.reader.resident.vocab_size,
        "computed_by": _computed_by(requests, adapter),
        "adapter": state.adapter,
        "messages": state.messages,
        "token_ids": state.ids.tolist(),
    }
    try:
        data = json.dumps(described, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except TypeError:  # only images and sounds can be of other types, because all else was checked before
        raise InvalidRequestError(
            "save: a message has an image or a sound as an object, which cannot be saved; give such parts as "
            "paths or data URLs"
        ) from None
    first = b"gemlet session %d %d\n" % (_VERSION, len(data))
    data = first + data
    made = f"{path}.{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    process = os.getpid()
    try:
        with open(os.open(made, flags, 0o600), "wb", buffering=0) as file:
            _write(file.fileno(), data + bytes(-len(data) % 64))
            if len(state.ids):
                try:
                    cache = requests.reader.resident.engine().prefix_cache
                    cache.save(state.ids, file.fileno(), adapter=adapter)
                except ModelFileError as error:
                    raise ModelFileError(f"{path}: {error}") from None
            os.fsync(file.fileno())
        os.replace(made, path)
    except OSError as problem:
        raise ModelFileError(f"{path}: cannot be written: {problem.strerror or problem}") from None
    finally:
        if os.getpid() == process:  # a signal handler may have forked
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)


def read_session(path: str | os.PathLike[str], requests: Requests) -> SessionState:
    """Reads the file ``path``. If this model computed the keys and values in the file, they are added to the
    prefix cache.

    Raises :class:`ModelFileError` for a file that is damaged or not a session, and
    :class:`InvalidRequestError` if the adapter of the session is not loaded.
    """
    path = checked_path("path", path, "the path of a file")
    try:
        with open_regular(path) as file:
            return _read(path, file.fileno(), os.fstat(file.fileno()).st_size, requests)
    except OSError as problem:
        raise ModelFileError(f"{path}: cannot be read: {problem.strerror}") from None


def _read(path: str, descriptor: int, size: int, requests: Requests) -> SessionState:
    first = _FIRST.match(read_from_start(descriptor, _FIRST_BYTES))
    if first is None:
        raise ModelFileError(f"{path}: is not a session; expected a file that Session.save() wrote")
    version, length = int(first[1]), int(first[2])
    if version != _VERSION:
        raise ModelFileError(
            f"{path}: is a session file of version {version}, expected {_VERSION}; save the session again "
            "with this version of gemlet"
        )
    end = first.end() + length
    if length > _MOST_BYTES:
        raise ModelFileError(
            f"{path}: is damaged: its first line announces {length} bytes of JSON, expected at most "
            f"{_MOST_BYTES}"
        )
    if end > size:
        raise ModelFileError(
            f"{path}: was cut short: its first line announces {length} bytes of JSON, but the file has only "
            f"{size - first.end()} bytes after it"
        )
    data = read_from_start(descriptor, end)[first.end() :]
    described = parse_json_object(data, where=path, error=ModelFileError)
    state = _checked(path, described, requests)
    adapter = requests.adapters.find(state.adapter).core
    is_own = described.get("computed_by") == _computed_by(requests, adapter) != ""
    if not is_own and not state.is_text:  # another model may have another vocabulary
        return replace(state, ids=array("i"))
    if len(state.ids) and is_own:
        at = end + -end % 64
        try:
            cache = requests.reader.resident.engine().prefix_cache
            cache.load(state.ids, descriptor, min(at, size), adapter=adapter)
        except MemoryLimitError:
            pass  # there is no room for the keys and values, so they are computed again
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
    return state


def _checked(path: str, described: dict[str, Any], requests: Requests) -> SessionState:
    kind, adapter, ids = (described.get(key) for key in ("kind", "adapter", "token_ids"))
    if kind not in ("text", "conversation"):
        raise ModelFileError(f"{path}: kind is {show(kind)}; expected 'text' or 'conversation'")
    if adapter is not None and not isinstance(adapter, str):
        raise ModelFileError(f"{path}: adapter is {show(adapter)}; expected a name or null")
    messages = described.get("messages")
    try:
        found = [dict(message) for message in checked_messages(messages)] if messages else []
        if not isinstance(messages, list) or not isinstance(ids, list):
            raise InvalidRequestError(
                f"messages is {show(messages)} and token_ids is {show(ids)}; expected a list for each"
            )
        if (kind == "text") and found:
            raise InvalidRequestError(f"it is a text with {len(found)} messages; expected none in a text")
        tokens = token_id_array(ids, vocab_size=1 << 31, name="token_ids") if ids else array("i")
        if kind == "text":
            size = requests.reader.resident.vocab_size
            if described.get("vocab_size") != size:
                raise InvalidRequestError(
                    f"it is a text for a vocabulary of {show(described.get('vocab_size'))} tokens, but the "
                    f"model has {size} tokens; load the session with the model that wrote it"
                )
            if ids:
                requests.reader.raw(tokens, "token_ids")
    except InvalidRequestError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return SessionState(found, tokens, kind == "text", adapter)


def _computed_by(requests: Requests, adapter: _core.Adapter | None) -> str:
    """A name for the model and the adapter, on which keys and values depend besides the tokens; "" if the
    digest of the model is not known."""
    model = requests.reader.resident.prefix_cache.model_digest.hex()
    if adapter is None or not model:
        return model
    return f"{model} {adapter.digest}"


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
