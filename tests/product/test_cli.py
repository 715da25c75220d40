"""Tests of the ``gemlet`` command as a user runs it, in its own process and with the demo model."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import gemlet
from gemlet.cli import main
from gemlet.cli.common import for_terminal, one_line, read_standard_input, warnings_in_a_line
from support.commands import GEMLET, PROMPT, failed, run, run_here
from support.waiting import PATIENCE

# --- gemlet generate


def test_a_pipe_gets_only_the_continuation() -> None:
    done = run("generate", PROMPT, "--max-tokens", "20", "--seed", "3", "--threads", "1")
    assert done.returncode == 0, done.stderr
    with gemlet.load(threads=1) as model:
        text = model.generate(PROMPT, max_tokens=20, seed=3).text
    assert done.stdout.decode() == (text if text.endswith("\n") else text + "\n")
    assert done.stderr == b""


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_prompt_from_standard_input(ending: str) -> None:
    options = ("--max-tokens", "12", "--seed", "4", "--json")
    given = json.loads(run("generate", PROMPT, *options).stdout)
    piped = json.loads(run("generate", "-", *options, stdin=(PROMPT + ending).encode()).stdout)
    assert piped["token_ids"] == given["token_ids"]
    assert piped["prompt_tokens"] == given["prompt_tokens"]


def test_standard_input_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    read = io.BytesIO(b"x" * 1000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=read))
    with pytest.raises(gemlet.ContextLengthError, match="prompt: standard input has more than"):
        read_standard_input("prompt", 99)
    assert read.tell() == 100
    read.seek(990)
    assert read_standard_input("prompt", 10) == "x" * 10


def test_json_for_machines() -> None:
    done = run(
        *(
            "generate",
            PROMPT,
            "--json",
            "--max-tokens",
            "16",
            "--seed",
            "5",
            "--weights",
            "q8",
            "--threads",
            "1",
        ),
        *("--temperature", "0.8", "--top-p", "0.9", "--top-k", "40", "--min-p", "0.02"),
        *("--repetition-penalty", "1.1", "--stop", "\x01a", "--stop", "\x01b"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    report = json.loads(done.stdout)
    with gemlet.load(weights="q8", threads=1) as model:
        expected = model.generate(
            PROMPT,
            max_tokens=16,
            seed=5,
            temperature=0.8,
            top_p=0.9,
            top_k=40,
            min_p=0.02,
            repetition_penalty=1.1,
            stop=["\x01a", "\x01b"],
        )
        assert report["tier"] == model.tier
    assert (report["text"], report["token_ids"]) == (expected.text, expected.token_ids)
    assert report["finish_reason"] == expected.finish_reason
    assert report["prompt_tokens"] == expected.prompt_tokens
    assert report["completion_tokens"] == len(report["token_ids"])
    assert (report["seed"], report["weights"], report["threads"]) == (5, "q8", 1)
    for name in ("load_seconds", "prefill_seconds", "decode_seconds", "peak_memory_bytes"):
        assert report[name] > 0
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
        assert report[name] > 0


def test_every_sampling_option() -> None:
    numbers = {
        "max_tokens": 12,
        "min_tokens": 4,
        "typical_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "no_repeat_ngram_size": 3,
        "dry_multiplier": 0.8,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "seed": 7,
        "logprobs": 1,
    }
    given = [part for name, value in numbers.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    done = run(
        *("generate", PROMPT, "--json", "--threads", "1", *given),
        *("--logit-bias", "479=-2.5", "--logit-bias", "20=1", "--suppress-tokens", "5,6"),
        *("--stop-token-ids", "395", "--dry-sequence-breakers", "door", "--dry-sequence-breakers", "\n"),
    )
    report = json.loads(done.stdout)
    with gemlet.load(threads=1) as model:
        expected = model.generate(
            PROMPT,
            logit_bias={479: -2.5, 20: 1},
            suppress_tokens=[5, 6],
            stop_token_ids=395,
            dry_sequence_breakers=["door", "\n"],
            **numbers,  # type: ignore[arg-type]
        )
    assert report["token_ids"] == expected.token_ids
    assert [one["token_id"] for one in report["logprobs"]] == expected.token_ids


def test_stats_go_to_standard_error() -> None:
    done = run("generate", PROMPT, "--max-tokens", "8", "--seed", "1", "--stats")
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["load", "prefill", "decode", "peak"]
    assert re.search(r"[\d.]+ s \(\w+, \d+ threads, \w+\)$", lines[0])
    assert re.search(r"\d+ tokens in [\d.]+ s, [\d.]+ tok/s$", lines[1])
    assert re.search(r"\d+ tokens in [\d.]+ s, [\d.]+ tok/s$", lines[2])
    assert re.search(r"[\d.]+ MB$", lines[3])
    assert b"tok/s" not in done.stdout


def test_stop_ends_the_text() -> None:
    options = ("generate", PROMPT, "--temperature", "0", "--max-tokens", "40", "--json")
    free = json.loads(run(*options).stdout)["text"]
    stop = free[len(free) // 2 :][:3]
    cut = json.loads(run(*options, "--stop", stop).stdout)
    assert cut["text"] == free[: free.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_an_ascii_terminal_gets_question_marks_and_no_traceback() -> None:
    done = run(
        "generate", "Caf\u00e9 \U0001f600", "--max-tokens", "40", "--seed", "1", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", PROMPT, "--model", "/no/such/folder"], "/no/such/folder"),
        (["generate", PROMPT, "--temperature", "nan"], "temperature: got nan, expected"),
        (["generate", PROMPT, "--temperature", "-1"], "temperature: got -1.0"),
        (["generate", PROMPT, "--top-p", "-1"], "top_p: got -1.0"),
        (["generate", PROMPT, "--top-k", "-3"], "top_k: got -3"),
        (["generate", PROMPT, "--max-tokens", "0"], "max_tokens: got 0"),
        (["generate", PROMPT, "--stop", ""], "stop: got ''"),
        (["generate", PROMPT, "--seed", "-2"], "seed: got -2"),
        (["generate", PROMPT, "--threads", "0"], "threads"),
        (["generate", ""], "prompt: it is empty"),
        (["generate", "-"], "prompt: it is empty"),
        (["generate", "word " * 5000], "prompt: "),
        (["chat", "--model", "/no/such/folder"], "/no/such/folder"),
        (["chat", "--thinking"], "thinking: the chat format gemma does not have it"),
        (["bench", "--random", "gemma9-9b"], "gemma9-9b"),
        (["bench", "-p", "0", "-n", "0"], "nothing to measure"),
        (["bench", "-p", "100000", "-n", "0"], "the context holds"),
        (["bench", "-r", "0"], "repetitions: got 0"),
        (["bench", "--random", "gemma3-270m", "--max-memory", "50MB"], "max_memory is 50 MB"),
        (["bench", "--random", "gemma3-270m", "--cache"], "cache needs a model in files"),
    ],
)
def test_an_error_prints_one_line_and_gives_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failed(run_here(capsys, *arguments))


def test_a_prompt_with_invalid_utf8_is_refused() -> None:
    assert "byte 3 of standard input is not UTF-8" in failed(run("generate", "-", stdin=b"abc\xff"))
    done = subprocess.run(
        [*map(os.fsencode, GEMLET), b"generate", b"abc\xff"],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "surrogate" in failed(done)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["generate"],
        ["generate", PROMPT, "--max-tokens", "many"],
        ["generate", PROMPT, "--weights", "q7"],
        ["generate", PROMPT, "--logit-bias", "5"],
        ["generate", PROMPT, "--logit-bias", "x=1"],
        ["generate", PROMPT, "--suppress-tokens", "5,x"],
        ["generate", PROMPT, "--no-such-option"],
        ["sing"],
        ["bench", "-p", "1,x"],
        ["bench", "--model", "a", "--random", "b"],
    ],
)
def test_bad_usage_gives_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = run_here(capsys, *arguments) if arguments else run()
    assert done.returncode == 2
    assert b"usage: gemlet" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize("command", [[], ["generate"], ["chat"], ["info"], ["bench"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: gemlet" in capsys.readouterr().out


def test_ctrl_c_ends_a_stream_cleanly() -> None:
    process = subprocess.Popen(
        [
            *GEMLET,
            "generate",
            PROMPT,
            "--max-tokens",
            "100000",
            "--temperature",
            "0",
            "--weights",
            "f32",
            "--threads",
            "1",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert error == b""


def test_ctrl_c_while_waiting_for_the_prompt() -> None:
    # The program writes to standard error when it is about to wait for standard input.
    program = (
        "import sys; from gemlet.cli import main; import gemlet.cli.generate; "
        "sys.stderr.write('!'); sys.stderr.flush(); sys.exit(main(['generate', '-']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.read(1) == b"!"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert output == b""
    assert error.strip() == b""


def test_a_closed_output_pipe_is_not_an_error() -> None:
    process = subprocess.Popen(
        [*GEMLET, "generate", PROMPT, "--max-tokens", "2000", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate - <&-", "prompt: it is empty"),
        ("chat <&-", ""),
        ("info >&-", ""),
        ("generate x --max-tokens 2 <&- >&- 2>&-", ""),
        ("generate x --max-tokens 2 >/dev/full", "No space left on device"),
        ("info >/dev/full", "No space left on device"),
    ],
)
def test_closed_and_full_streams(command: str, message: str) -> None:
    line = f'"{sys.executable}" -m gemlet {command}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=PATIENCE, check=False)
    if message:
        assert message in failed(done)
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    done = run("generate", PROMPT, "--max-tokens", "2", "--cache", XDG_CACHE_HOME="/dev/null")
    assert done.returncode == 0
    warning = done.stderr.decode()
    assert warning.startswith("gemlet: warning: cache=True: /dev/null")
    assert warning.count("\n") == 1
    with warnings_in_a_line():
        logging.getLogger("gemlet").warning("of the\n%s", "log")
    logging.getLogger("gemlet").warning("for nobody")
    assert capsys.readouterr().err == "gemlet: warning: of the\\nlog\n"


# --- gemlet info and --version


def test_info() -> None:
    report = json.loads(run("info", "--json").stdout)
    assert report["threads"] >= 1
    assert report["threads_reason"]
    assert report["cpu"]["tier"] in report["cpu"]["tiers"]
    assert "scalar" in report["cpu"]["tiers"]
    shown = run("info").stdout.decode()
    assert f"gemlet   {report['version']} " in shown
    assert f"\ntier     {report['cpu']['tier']} (" in shown
    assert f"\nthreads  {report['threads']} ({report['threads_reason']})" in shown


def test_info_names_a_forced_tier() -> None:
    report = json.loads(run("info", "--json", GEMLET_CPU="scalar").stdout)
    assert report["cpu"]["tier"] == "scalar"
    assert "GEMLET_CPU" in report["cpu"]["reason"]
    assert "GEMLET_CPU" in failed(run("info", GEMLET_CPU="quantum"))


def test_version() -> None:
    assert run("--version").stdout.decode() == f"gemlet {gemlet.__version__}\n"


def test_text_of_files_and_models_cannot_control_the_terminal() -> None:
    hostile = "a\x1b[2Jb\nc\x9b1md\te\x7f"
    assert for_terminal(hostile) == "a[2Jb\nc1md\te"
    assert one_line(hostile) == r"a\x1b[2Jb\nc\x9b1md\te\x7f"
    assert one_line("na\u00efve \U0001f600") == "na\u00efve \U0001f600"
