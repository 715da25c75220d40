"""Tests of the names of options on the command line: underscores, abbreviations, and errors for wrong
names."""

from __future__ import annotations

import json

import pytest

from gemlet.cli import main
from gemlet.cli.parser import build_parser


def test_names_may_have_underscores_instead_of_hyphens() -> None:
    arguments = build_parser().parse_args(
        ["generate", "--max_tokens", "3", "--top_k=5", "--kv_cache=int8", "--stop=a_b", "--", "--x_y"]
    )
    assert (arguments.max_tokens, arguments.top_k, arguments.kv_cache) == (3, 5, "int8")
    assert (arguments.stop, arguments.prompt) == (["a_b"], "--x_y")


def test_an_option_may_be_abbreviated() -> None:
    assert build_parser().parse_args(["generate", "x", "--temp", "0.5"]).temperature == 0.5


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("generate x --max-new-tokens 3", "--max-new-tokens 3; did you mean --max-tokens?"),
        ("generate x --max_new_tokens 3", "did you mean --max-tokens?"),
        ("generate x --repeat_penalty 1.1", "did you mean --repetition-penalty?"),
        ("generate x --repeat-penalty=1.1", "did you mean --repetition-penalty?"),
        ("generate x --n_predict 3", "did you mean --max-tokens?"),
        ("generate x --n-ctx 3", "did you mean --max-context?"),
        ("chat x --ctx-size 3", "did you mean --max-context?"),
        ("chat x --dtype bf16", "did you mean --weights?"),
        ("chat x --treads 2", "did you mean --threads?"),
        ("chat x -m model", "did you mean --model?"),
        ("generate x -n 3", "did you mean --max-tokens?"),
        ("chat x -f letter", "did you mean --file?"),
        ("embed x --prompt_name query", "did you mean --prompt?"),
        ("generate x --n-gpu-layers 3", "--n-gpu-layers 3; --help lists the options"),
        ("info -n 3", "-n 3; --help lists the options"),
        ("chat what is this", "arguments: is this; put quotes around a text of several words"),
        ("chat x --context-full dorp", "did you mean drop?"),
        ("generate x --weights q7", "argument --weights: weights is 'q7'; expected one of 'auto'"),
        ("genrate x", "did you mean generate?"),
        ("Chat", "did you mean chat?"),
        ("run gemma3", "did you mean chat?"),
        ("pull google/gemma-3-1b-it", "did you mean download?"),
        ("help", "did you mean --help?"),
        ("cache rm", "invalid choice: 'rm'"),
        ("generate --prompt x", "did you mean the text as an argument of its own?"),
        ("cache lsit", "did you mean list?"),
        ("--versoin", "did you mean --version?"),
    ],
)
def test_errors_suggest_the_option_that_was_meant(
    command: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert usage[0].startswith("usage: gemlet")
    assert answer in error


def test_an_unknown_name_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["generate", "x", "--\x1b[2J"], ["\x1b[2J"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "\x1b" not in capsys.readouterr().err


def test_both_spellings_give_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for name in ("--max-tokens", "--max_tokens"):
        assert main(["generate", "The door", name, "4", "--temperature", "0", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert found[0] == found[1]
