"""The options of pytest and the fixtures that all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import gemlet
from gemlet.tokenizer import Tokenizer
from support.browser import why_no_browser
from support.extras import why_absent
from support.tiny_models import CONFIGS, write_folder
from support.tokenizer_files import gemma4_gguf, save, trained_gguf, trained_json, trained_model

# If a shell starts pytest in the background, the process and its children ignore SIGINT. Some tests send
# SIGINT, so this restores Python's handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--need-extras",
        default="",
        help="extras such as hub,grammar, or all: their tests fail if packages are missing",
    )
    parser.addoption(
        "--tested-extras",
        default="",
        help="extras such as hub,grammar: leave out the tests that need no other extra",
    )
    parser.addoption(
        "--need-browser",
        action="store_true",
        help="if there is no browser, the tests of the web page fail instead of being skipped",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tested = set(config.getoption("tested_extras").split(","))
    if tested != {""}:
        items[:] = [item for item in items if not {m.args[0] for m in item.iter_markers("extra")} <= tested]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that cannot run here, by their markers. ``extra``: packages of the extra are not installed.
    ``real``: GEMLET_REAL_MODEL does not name the file of the trained model. ``browser``: there is no
    browser."""
    if item.get_closest_marker("real") and not os.environ.get("GEMLET_REAL_MODEL"):
        pytest.skip(
            "GEMLET_REAL_MODEL is not set; expected the path of the GGUF file that the README downloads"
        )
    if item.get_closest_marker("browser") and (reason := why_no_browser()):
        if item.config.getoption("need_browser"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    needed = item.config.getoption("need_extras").split(",")
    for marker in item.iter_markers("extra"):
        reason = why_absent(marker.args[0])
        if reason and ("all" in needed or marker.args[0] in needed):
            pytest.fail(reason, pytrace=False)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def gemma4_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(tmp_path_factory.mktemp("gemma4"), "vocab.gguf", gemma4_gguf()))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(tmp_path_factory.mktemp("trained"), "tokenizer.model", trained_model()))


@pytest.fixture(scope="session")
def trained_json_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(tmp_path_factory.mktemp("json"), "tokenizer.json", trained_json()))


@pytest.fixture(scope="session")
def trained_gguf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(save(tmp_path_factory.mktemp("gguf"), "model.gguf", trained_gguf()))


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a packed Gemma 3. Tests must not change the folder."""
    folder = tmp_path_factory.mktemp("packed")
    source = write_folder(folder / "source", CONFIGS["gemma3_text"])
    gemlet.convert(source, folder / "q4", weights="q4", threads=1)
    return folder / "q4"


@pytest.fixture
def hole_path(tmp_path: Path) -> Iterator[Path]:
    """A folder for files with holes of several gigabytes. If possible, the folder is in memory, where reading
    holes is quick and does not fill the page cache."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)
