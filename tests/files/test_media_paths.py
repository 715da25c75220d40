"""Paths of media that are not files are refused at once, without waiting."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gemlet import InvalidRequestError
from gemlet.media.images import read_image
from gemlet.media.sounds import read_sound
from gemlet.media.videos import read_video


def read_frames(path: Path) -> object:
    return read_video(path, "video", len, len)


def make_socket(path: Path) -> None:
    """A socket at ``path``, bound by a short name, because the whole name may be too long for it."""
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".pipe"))
    path.symlink_to(path.with_suffix(".pipe"))


@pytest.mark.parametrize("read", [read_image, read_sound, read_frames])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "not a regular file"),
        (make_link_to_pipe, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "not a regular file"),
        (make_socket, "cannot be read"),
        (os.mkdir, "directory"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "No such file"),
    ],
    ids=["pipe", "link to a pipe", "zero", "null", "socket", "folder", "circle", "nothing"],
)
def test_a_path_that_is_not_a_file_is_refused_at_once(
    read: Callable[[Path], object], make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "medium"
    make(path)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("read", [read_image, read_sound, read_frames])
def test_a_pipe_with_a_writer_is_refused_too(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "medium"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        os.write(writer, b"RIFF")
        with pytest.raises(InvalidRequestError, match="not a regular file"):
            read(path)
    finally:
        os.close(writer)
