"""Tests of importing gemlet: the public modules keep their names, and an import is quick and loads few
modules."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gemlet
from support.processes import environment_of, run_program
from support.programs.importing import interrupt_import

NAMES = {
    "gemlet": """
        Adapter CancelledError Chunk ConfigError ContextLengthError GemletError Generation
        GenerationConfig HubError Inspection InvalidRequestError Matformer MemoryLimitError Model
        ModelClosedError ModelFileError Progress TensorError TextStream Tokenizer TokenizerError
        ToolCall UnsupportedError __version__ convert download inspect load
    """,
    "gemlet.chat": """
        ChatFormat Content FUNCTION_GEMMA FunctionGemmaFormat GEMMA GEMMA4_MARKERS Gemma4Format
        Gemma4Revision GemmaFormat MalformedToolCall Reasoning Reply ReplyEvent ReplyParser Segments
        TextReplyParser TokenReplyParser ToolCall chat_format_for collect gemma4_format
        read_chat_template
    """,
    "gemlet.config": """
        LayerSpec SHAPES TextConfig embedding_scale parse_config read_config read_end_ids
        read_sampling shape_config
    """,
    "gemlet.errors": """
        CancelledError ConfigError ContextLengthError GemletError HubError InvalidRequestError
        MemoryLimitError ModelClosedError ModelFileError TensorError TokenizerError UnsupportedError
    """,
    "gemlet.generation": """
        Chunk FinishReason Generation GenerationConfig GenerationOptions TextStream
    """,
    "gemlet.tokenizer": """
        StreamDecoder Tokenizer
    """,
}


def test_dir_lists_the_public_names() -> None:
    listed = [name for name in dir(gemlet) if not name.startswith("__")]
    assert listed == sorted(name for name in gemlet.__all__ if not name.startswith("__"))
    assert set(gemlet.__all__) <= set(dir(gemlet))


@pytest.mark.parametrize("module", NAMES)
def test_a_public_module_keeps_its_names(module: str) -> None:
    found = importlib.import_module(module)
    assert set(NAMES[module].split()) <= set(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_every_public_name_exists() -> None:
    for name in gemlet.__all__:
        assert getattr(gemlet, name) is not None
        assert name in dir(gemlet)
    assert not hasattr(gemlet, "surprise")


# --- in a new process -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["numpy", "numpy.linalg", "numpy.matrixlib", "gemlet.model.model"])
def test_a_signal_in_the_middle_of_an_import(module: str, number: int) -> None:
    run_program(interrupt_import, module, int(number))


def output_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, env=environment_of()
    )
    assert done.stderr == ""
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("module", [*NAMES, "gemlet.loading.load", "gemlet.cli"])
def test_load_is_the_function_after_any_first_import(module: str) -> None:
    program = f"import {module}, gemlet; print(gemlet.load.__module__, callable(gemlet.load))"
    assert output_of(program) == "gemlet.loading.load True"


def test_an_import_prints_nothing_and_loads_no_heavy_module() -> None:
    heavy = {"gemlet._core", "sentencepiece", "safetensors", "argparse", "json", "numpy", "resource"}
    assert output_of(f"import sys, gemlet; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_an_import_costs_little() -> None:
    """An import loads three modules of gemlet and about thirty of the standard library. With NumPy, it would
    load more than a hundred. The test counts modules, because a time would depend on the machine."""
    program = "import sys; before = set(sys.modules); import gemlet; print(*set(sys.modules) - before)"
    loaded = output_of(program).split()
    assert len([name for name in loaded if name.startswith("gemlet")]) <= 5, loaded
    assert len(loaded) <= 50, loaded


def test_a_short_run_loads_only_the_modules_it_needs(tmp_path: Path) -> None:
    """The program loads a packed folder and generates a token. Importing NumPy and SentencePiece would double
    its time."""
    gemlet.convert(None, tmp_path / "q4", weights="q4", threads=1)
    program = f"""
import sys, gemlet
folder, opened = {str(tmp_path / "q4")!r}, []
def look(event, given):
    if event == "open" and str(given[0]).startswith(folder):
        opened.append(str(given[0])[len(folder) + 1:])
sys.addaudithook(look)
with gemlet.load(folder, threads=1) as model:
    assert model.generate("The door", max_tokens=1).completion_tokens == 1
print(*sorted(opened))
print(*sys.modules)
"""
    opened, loaded = (line.split() for line in output_of(program).splitlines())
    heavy = {"numpy", "sentencepiece", "safetensors", "asyncio", "subprocess", "tempfile", "difflib"}
    heavy |= {"dataclasses", "inspect", "logging", "pathlib", "datetime", "selectors", "zlib", "base64"}
    assert not heavy & set(loaded)
    assert len([name for name in loaded if name.startswith("gemlet")]) <= 171, loaded
    assert len(loaded) <= 270, len(loaded)
    files = sorted(file.name for file in (tmp_path / "q4").iterdir())
    assert sorted(set(opened)) == files


@pytest.mark.extra("serve")
def test_a_server_loads_only_the_modules_it_needs() -> None:
    """The methods of records are not compiled either, because the start of a server only makes objects of
    them."""
    program = """
import sys
from gemlet.base import records
from gemlet.cli.parser import build_parser
from gemlet.cli.serve import read_settings
settings, models = read_settings(build_parser("serve").parse_args(["serve", "--port", "0"]))
assert settings.port == 0 and len(models) == 1
print(records._dataclass.cache_info().currsize)
print(*sys.modules)
"""
    compiled, loaded = output_of(program).splitlines()
    assert compiled == "0"
    heavy = {"numpy", "sentencepiece", "safetensors", "jinja2", "PIL", "opentelemetry", "ray", "openai"}
    heavy |= {"gemlet.loading.inspect", "gemlet.sources.gguf_model", "gemlet.packing.cache"}
    assert not heavy & set(loaded.split())
    own = [name for name in loaded.split() if name.startswith("gemlet")]
    assert len(own) <= 240, own


def test_help_and_version_do_not_wait_for_numpy() -> None:
    program = "import sys; from gemlet.cli import main; main(['--version']); print('numpy' in sys.modules)"
    assert output_of(program).endswith("False")
