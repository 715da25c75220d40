"""Tests of ``gemlet chat``, and of other commands on a terminal."""

from __future__ import annotations

import builtins
import io
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gemlet
from gemlet.cli import chat, keyboard, main
from gemlet.cli.common import for_terminal
from gemlet.cli.history import History
from gemlet.cli.parser import build_parser
from gemlet.generation import Chunk, TextStream
from support.commands import PROMPT, failed, run
from support.processes import command_of
from support.programs.slow_chat import WAIT, chat_slowly
from support.terminal import on_terminal

FAST = ("--max-tokens", "8", "--seed", "1")


def test_a_terminal_shows_the_prompt_before_the_text() -> None:
    code, screen = on_terminal(["generate", PROMPT, "--max-tokens", "15", "--seed", "3"])
    assert code == 0
    with gemlet.load() as model:
        text = model.generate(PROMPT, max_tokens=15, seed=3).text
    note, _, screen = screen.partition("\n")
    assert note.startswith("gemlet: note: this is the small demo model; ")
    assert note.endswith("; gemlet chat answers it")
    assert screen == f"\x1b[1m{PROMPT}\x1b[0m{for_terminal(text)}" + ("" if text.endswith("\n") else "\n")


def test_chat_on_a_terminal() -> None:
    code, screen = on_terminal(
        ["chat", *FAST],
        [
            ("\n> ", "Good evening\n"),
            ("\n> ", "/rest\n"),
            ("\n> ", "/dance\n"),
            ("\n> ", "/reset\n"),
            ("\n> ", "/undo\n"),
            ("\n> ", "/image\n"),
            ("\n> ", "/help\n"),
            ("\n> ", "\x03"),
            ("\n> ", "/exit\n"),
        ],
    )
    assert code == 0
    assert "This is the small demo model" in screen
    assert "--model" in screen
    assert "/rest is not a command; did you mean /reset?" in screen
    assert "/dance is not a command; /help lists the commands" in screen
    assert "there is no turn to take back" in screen
    assert "the conversation is forgotten" in screen
    assert "/image needs a file: /image FILE" in screen
    assert "starts afresh" not in screen
    assert "/save [FILE]" in screen
    assert "/exit or Ctrl-D leaves" in screen
    assert "Traceback" not in screen


@pytest.mark.parametrize("word", ["exit", "quit", "Exit", "/exit", "/quit"])
def test_exit_words_end_the_chat(word: str) -> None:
    assert on_terminal(["chat", *FAST], [("\n> ", f"{word}\n")])[0] == 0


def test_a_reply_that_max_tokens_cut_off_has_a_mark() -> None:
    code, screen = on_terminal(["chat", PROMPT, "--max-tokens", "3", "--temperature", "0"])
    assert code == 0
    assert screen.endswith("\x1b[2m[cut at 3 tokens]\x1b[0m\n")
    piped = run("chat", PROMPT, "--max-tokens", "3", "--temperature", "0")
    assert piped.stderr.startswith(b"gemlet: note: cut at 3 tokens; ")
    assert b"cut" not in piped.stdout


def saved(folder: Path, *typed: str) -> list[str]:
    """Types these lines in a chat on a terminal, and saves the conversation with /save. Returns the user's
    messages in the saved file."""
    path = folder / "chat.json"
    keys = [*typed, f"/save {path}\n", "/exit\n"]
    code, screen = on_terminal(["chat", *FAST, "--system", "Be kind."], [("\n> ", text) for text in keys])
    assert code == 0
    assert f"saved as {path}" in screen
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    messages = json.loads(path.read_text())
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert [message["role"] for message in messages[1:]] == ["user", "assistant"] * (len(messages) // 2)
    return [message["content"] for message in messages[1::2]]


def test_a_pasted_text_is_one_message(tmp_path: Path) -> None:
    text = "Dear Sir,\n\n/exit is a word"
    assert saved(tmp_path, f"\x1b[200~{text}\x1b[201~\n") == [text]


def test_three_quotes_around_several_lines(tmp_path: Path) -> None:
    typed = ['"""Dear Sir,\nGood evening.\n"""\n', '"""one line"""\n']
    assert saved(tmp_path, *typed) == ["Dear Sir,\nGood evening.", "one line"]


def test_a_turn_can_be_undone(tmp_path: Path) -> None:
    assert saved(tmp_path, "One\n", "Two\n", "/undo\n", "Three\n") == ["One", "Three"]


def test_saving_a_conversation_overwrites_no_file(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("mine")
    done = run("chat", *FAST, stdin=f"/save {tmp_path}/here\n".encode())
    assert done.returncode == 1
    assert b"File exists" in done.stderr
    assert (tmp_path / "here").read_text() == "mine"


def test_chats_share_a_history_of_typed_lines(tmp_path: Path) -> None:
    typed = [("\n> ", "Good evening\n"), ("\n> ", '"""a\nb"""\n'), ("\n> ", "/exit\n")]
    assert on_terminal(["chat", *FAST], typed, XDG_STATE_HOME=str(tmp_path))[0] == 0
    path = tmp_path / "gemlet" / "chat-history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert History(str(path)).messages == ["Good evening", "a\nb", "/exit"]
    up = "\x1b[A"
    code, screen = on_terminal(
        ["chat", *FAST], [("\n> ", f"{up * 3}\n"), ("\n> ", "/exit\n")], XDG_STATE_HOME=str(tmp_path)
    )
    assert code == 0
    if keyboard._gnu_readline() is not None:
        assert "Good evening" in screen


def test_the_file_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text('"one"\nnonsense\n7\n"t\\u001bwo"\n')
    path.chmod(0o644)
    history = History(str(path))
    assert history.messages == ["one", "two"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for number in range(2500):
        history.add(str(number))
    assert History(str(path)).messages == [str(number) for number in range(1500, 2500)]
    assert len(path.read_bytes().splitlines()) == 1000


def test_a_history_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in ("/dev/null/history", "/dev/null", str(tmp_path), str(tmp_path / "link")):
        history = History(path)
        history.add("one")
        assert history.messages == ["one"]
    assert (tmp_path / "target").read_text() == "mine"


def test_a_paste_without_readline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyboard, "_gnu_readline", lambda: None)
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    lines: Iterator[str] = iter(["\x1b[200~Dear Sir,", "/exit\x1b[201~ said he", "next"])
    monkeypatch.setattr(builtins, "input", lambda prompt="": next(lines))
    with keyboard.Keyboard() as typed:
        assert typed.read() == "Dear Sir,\n/exit said he"
        assert typed.read() == "next"


def test_ctrl_c_cuts_a_reply_short(tmp_path: Path) -> None:
    options = ("--max-tokens", "500", "--min-tokens", "500", "--temperature", "0")
    with gemlet.load() as model:
        text = model.chat(PROMPT, max_tokens=500, min_tokens=500, temperature=0).text
    words, path = text.split("\n")[0][:20], tmp_path / "chat.json"
    code, screen = on_terminal(
        [],
        [
            ("\n> ", f"{PROMPT}\n"),
            (words, "\x03"),
            ("\n> ", f"{WAIT}\n"),
            ("waiting", "\x03"),
            ("\n> ", "/reset\n"),
            ("\n> ", f"{PROMPT}\n"),
            (words, "\x03"),
            ("\n> ", f"/save {path}\n"),
            ("\n> ", "/exit\n"),
        ],
        command=command_of(chat_slowly, *options),
    )
    assert code == 0, screen
    assert "Traceback" not in screen
    assert screen.rfind("\x1b[?2004h") < screen.rfind("\x1b[?2004l")  # bracketed paste mode is off again
    question, reply = json.loads(path.read_text())
    assert question["content"] == PROMPT
    assert text.startswith(reply["content"])
    assert len(reply["content"]) < len(text) / 2


def test_chat_leaves_at_ctrl_d() -> None:
    code, _ = on_terminal(["chat", "--max-tokens", "4"], [("\n> ", "Hello\n"), ("\n> ", "\x04")])
    assert code == 0


def test_chat_in_a_pipe_answers_each_line_with_the_conversation_so_far() -> None:
    done = run(
        "chat",
        "--max-tokens",
        "10",
        "--seed",
        "6",
        "--system",
        "Be kind.",
        stdin=b"One\n\nTwo\n/reset\nOne\n",
    )
    assert done.returncode == 0, done.stderr
    system = {"role": "system", "content": "Be kind."}
    one, two = ({"role": "user", "content": content} for content in ("One", "Two"))
    with gemlet.load() as model:
        first = model.chat([system, one], max_tokens=10, seed=6).text
        assert first
        second = model.chat(
            [system, one, {"role": "assistant", "content": first}, two], max_tokens=10, seed=6
        ).text
    assert done.stdout.decode() == f"{first}\n{second}\n{first}\n"


def test_ctrl_c_ends_a_chat_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: TextStream) -> Chunk:
        raise KeyboardInterrupt

    monkeypatch.setattr(TextStream, "_begin", interrupt)
    lines = io.StringIO("One\nTwo\n")
    monkeypatch.setattr(sys, "stdin", lines)
    assert main(["chat"]) == 130
    assert lines.readline() == "Two\n"


def test_a_line_without_an_answer_makes_the_exit_code_1() -> None:
    done = run("chat", *FAST, stdin=b"word " * 5000 + b"\nHello\n")
    assert done.returncode == 1
    error, *rest = done.stderr.decode().splitlines()
    assert error.startswith("gemlet: error: line 1: the message has ")
    assert "the context holds 1024" in error
    assert all(line.startswith("gemlet: note: ") for line in rest)
    assert done.stdout.endswith(b"\n")
    assert done.stdout.strip()
    for line in (b"/dance", b"abc\xff"):
        done = run("chat", *FAST, stdin=line + b"\nHello\n")
        assert done.returncode == 1
        assert done.stderr.startswith(b"gemlet: error: line 1: ")
        assert done.stdout.strip()


# --- questions on the command line


def answer(*messages: str) -> str:
    with gemlet.load() as model:
        conversation = [{"role": "user", "content": message} for message in messages]
        return model.chat(conversation, max_tokens=8, seed=1).text + "\n"


def test_a_question_is_answered() -> None:
    done = run("chat", "Who is there?", *FAST)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == answer("Who is there?")


def test_standard_input_becomes_one_message() -> None:
    done = run("chat", "-", *FAST, stdin=b"Dear Sir,\n\n/reset the clock\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == answer("Dear Sir,\n\n/reset the clock")


def test_a_question_about_files(tmp_path: Path) -> None:
    (tmp_path / "letter").write_bytes(b"\xef\xbb\xbfDear Sir,\r\nGood evening.\n")
    done = run("chat", "What is it?", "--file", "~/letter", *FAST, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == answer("What is it?\n\nDear Sir,\r\nGood evening.")
    alone = run("chat", "--file", str(tmp_path / "letter"), *FAST)
    assert alone.stdout.decode() == answer("Dear Sir,\r\nGood evening.")


def test_a_question_that_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x89PNG")
    assert "byte 0 is not UTF-8" in failed(run("chat", "--file", str(tmp_path / "image")))
    assert "No such file" in failed(run("chat", "--file", str(tmp_path / "none")))
    assert "--file /dev/zero: has more than" in failed(run("chat", "--file", "/dev/zero"))
    assert "question: it is empty" in failed(run("chat", "-", stdin=b"\n"))
    assert "question: it is empty" in failed(run("chat", ""))
    assert "byte 0 of standard input" in failed(run("chat", "-", stdin=b"\xff"))
    assert "the context holds 1024" in failed(run("chat", "-", stdin=b"word " * 2000))


def test_json_of_replies() -> None:
    done = run("chat", "Who is there?", "--json", *FAST)
    report = json.loads(done.stdout)
    assert report["text"] + "\n" == answer("Who is there?")
    assert report["finish_reason"] in ("stop", "length")
    lines = run("chat", "--json", *FAST, stdin=b"Who is there?\nAnd then?\n").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert first["text"] == report["text"]
    assert 0 < second["cached_tokens"] < second["prompt_tokens"]
    code, screen = on_terminal(["chat", "--json"])
    assert (code, "--json: give the question" in screen) == (1, True)


# --- conversations that are longer than the context


def test_the_oldest_turns_are_dropped_when_the_context_is_full() -> None:
    options = ("--max-tokens", "40", "--seed", "1", "--max-context", "128", "--temperature", "0")
    lines = b"".join(b"Tell me of the old house on the hill, number %d.\n" % number for number in range(8))
    done = run("chat", "--system", "Be kind.", *options, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 8
    assert b"the context of 128 tokens is full: the oldest " in done.stderr
    strict = run("chat", *options, "--context-full", "error", stdin=lines)
    assert strict.returncode == 1
    assert b"the context holds 128" in strict.stderr


def test_generate_says_that_it_does_not_chat() -> None:
    folder = str(Path(gemlet.__file__).parent / "demo")
    note = b"gemlet: note: generate only continues the text; gemlet chat answers it\n"
    assert run("generate", PROMPT, "--model", folder, "--max-tokens", "2").stderr == note
    turn = "<start_of_turn>user\nWho is there?<end_of_turn>\n<start_of_turn>model\n"
    assert run("generate", turn, "--model", folder, "--max-tokens", "2").stderr == b""


def test_replies_with_thinking_may_be_longer() -> None:
    from_line = build_parser().parse_args
    for words, tokens in (
        (["chat"], 1024),
        (["chat", "--max-tokens", "7"], 7),
        (["chat", "--thinking"], None),
        (["chat", "--system", "<|think|> Be brief."], None),
        (["chat", "--thinking", "--max-tokens", "7"], 7),
    ):
        assert chat._options(from_line(words)).get("max_tokens") == tokens
