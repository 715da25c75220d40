"""The public modules keep every name that users import from them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "gemlet": """
        CancelledError Chunk ConfigError ContextLengthError GemletError Generation GenerationConfig
        HubError Inspection InvalidRequestError MemoryLimitError Model ModelClosedError
        ModelFileError TensorError Tokenizer TokenizerError UnsupportedError __version__ convert
        download inspect load
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
        Chunk FinishReason Generation GenerationConfig TextStream
    """,
    "gemlet.tokenizer": """
        StreamDecoder Tokenizer
    """,
}


@pytest.mark.parametrize("module", NAMES)
def test_a_public_module_has_the_names_it_had(module: str) -> None:
    found = importlib.import_module(module)
    assert set(NAMES[module].split()) <= set(found.__all__)
    for name in found.__all__:
        assert getattr(found, name) is not None


@pytest.mark.parametrize("module", [*NAMES, "gemlet.loading.load", "gemlet.cli"])
def test_load_is_the_function_whatever_is_imported_first(module: str) -> None:
    program = f"import {module}, gemlet; print(gemlet.load.__module__, callable(gemlet.load))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout == "gemlet.loading.load True\n"
