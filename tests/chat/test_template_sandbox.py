"""A chat template of a model file can do no harm: time, memory, names of Python, files."""

from __future__ import annotations

import os
import re
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.chat.template_process import run_template
from gemlet.errors import GemletError, InvalidRequestError, UnsupportedError
from support.chat_conversations import compiled
from support.inside import template_process
from support.pace import in_time
from support.processes import peak, run_program, start_program
from support.programs import templates as programs
from support.templates import ALPACA, CHATML, ENDLESS, GEMMA_LIKE, GUARD, HOSTILE, TRANSLATE

pytestmark = pytest.mark.extra("templates")

VALUES = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}


def outcome(template: str) -> str | GemletError:
    try:
        return run_template(template, [VALUES]).texts[0]
    except GemletError as error:
        return error


def check_refused(template: str) -> None:
    memory = peak()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = outcome(template)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert isinstance(found, (UnsupportedError, InvalidRequestError)), found
    assert "chat template" in str(found)
    assert len(str(found)) < 2000
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert in_time(taken, 5)  # this includes the starts of a process
    # The largest child so far, perhaps of another test. Before exec() it has the pages of this process.
    assert after.ru_maxrss <= max(before.ru_maxrss, peak() * 1024, 400 << 10)
    assert peak() - memory < 50
    assert outcome("{{ messages[0].content }}") == "Hi"  # the next template still works


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_end_in_an_error(template: str) -> None:
    check_refused(template)


@pytest.mark.slow
@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_endless_templates_end_in_an_error(template: str) -> None:
    check_refused(template)


def test_one_endless_template_in_the_quick_tests() -> None:
    check_refused(next(islice(ENDLESS.values(), 1)))


def test_templates_can_do_the_same_as_in_transformers() -> None:
    """A template may do the same as in transformers."""
    for template, expected in {
        "{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}": "13",
        "  {% if 1 %}\n  x\n  {% endif %}\n": "  x\n",
        "{% generation %}a{{ 1 }}{% endgeneration %}b": "a1b",
        "{{ {'b': '<ä>', 'a': [1, none]} | tojson }}": '{"b": "<ä>", "a": [1, null]}',
        "{{ {'b': 1, 'a': 'ä'} | tojson(sort_keys=true, ensure_ascii=true) }}": '{"a": "\\u00e4", "b": 1}',
        "{{ {'a': 1} | tojson(indent=1) }}": '{\n "a": 1\n}',
        "{{ dict(a=1) }}{{ dict.fromkeys([1]) }}": "{'a': 1}{1: None}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}": "2",
        "{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(1) }}": "<1>",
        "{{ messages[-1:][0].content.split('i')[0] }}{{ nothing }}": "H",
        "{{ strftime_now('%%') }}": "%",
    }.items():
        assert outcome(template) == expected


def test_every_filter_and_test_of_jinja_works() -> None:
    """A filter works even if it imports a module at its first use, when the process cannot open files."""
    environment = compiled("").environment
    for name in sorted(environment.filters.keys() - {"random"}):
        for value in ("'<b>a</b> &amp; b'", "[2, 1]", "{'a': 1}", "1.5"):
            text = f"{{{{ {value} | {name} }}}}"
            found = str(outcome(text)).removeprefix("the model's chat template fails on these messages: ")
            try:
                expected = compiled(text).render(**VALUES)
            except Exception as error:
                expected = f"{type(error).__name__}: {error}"
            assert re.sub("0x[0-9a-f]+", "0x", found) == re.sub("0x[0-9a-f]+", "0x", expected)
    for name in environment.tests:
        assert "OSError" not in str(outcome(f"{{{{ 1 is {name} }}}}{{{{ 1 is {name}(1) }}}}"))


def test_errors_say_whose_fault_it_is() -> None:
    cases: dict[str, tuple[type[GemletError], str]] = {
        "{{ raise_exception('only one turn') }}": (
            InvalidRequestError,
            "refuses these messages: only one turn",
        ),
        "{{ messages[0].content + 1 }}": (InvalidRequestError, "fails on these messages: TypeError"),
        "{{ nothing.more }}": (InvalidRequestError, "'nothing' is undefined"),
        "a\n{% if %}": (UnsupportedError, "not valid Jinja: line 2"),
        "{{ ''.__class__.__mro__ }}": (UnsupportedError, "__class__"),
    }
    for template, (kind, words) in cases.items():
        found = outcome(template)
        assert type(found) is kind
        assert words in str(found)


def test_texts_of_one_request_are_apart() -> None:
    rendered = run_template("{{ a + 1 }}{{ b }}", [{"a": 1}, {"a": "x"}, {"a": 2}])
    assert rendered.names == {"a", "b"}
    assert rendered.texts[::2] == ["2", "3"]
    assert isinstance(rendered.texts[1], InvalidRequestError)


def test_the_texts_of_one_request_have_a_bound_together() -> None:
    half = "{% for i in range(300) %}{{ 'x' * 10000 }}{% endfor %}"
    texts = run_template(half, [VALUES] * 4).texts
    assert len(texts[0]) == 3_000_000
    assert all(isinstance(text, UnsupportedError) for text in texts[1:])
    assert run_template("{{ a * 500000 }}", [{"a": "\U0001f600"}]).texts == ["\U0001f600" * 500000]


def test_the_sandbox_takes_any_text() -> None:
    for text in ("", "\n", "\u2028\x00\x1b\U0001f600", "\ud800", "x" * 3_000_000):
        assert run_template("{{ a }}", [{"a": text}]).texts == [text]
    with pytest.raises(InvalidRequestError, match="bytes"):
        run_template("{{ a }}", [{"a": "x" * (65 << 20)}])


def test_threads_take_turns() -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: run_template("{{ a }}", [{"a": i}]).texts[0], range(200)))
    assert texts == [str(i) for i in range(200)]


def test_a_process_that_was_killed_is_started_again() -> None:
    assert outcome("{{ 1 }}") == "1"
    process = template_process()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert outcome("{{ 2 }}") == "2"
    os.kill(template_process().pid, signal.SIGKILL)  # and a process that has died before the next request
    assert isinstance(outcome("{{ 3 }}"), (str, UnsupportedError))
    assert outcome("{{ 4 }}") == "4"


def test_forked_processes_run_templates() -> None:
    run_program(programs.in_forks, environment={"PYTHONWARNINGS": "error"})


def test_python_exits_quietly_while_a_thread_runs_a_template() -> None:
    done = start_program(programs.at_exit, environment={"PYTHONWARNINGS": "error"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_this_process_does_not_import_jinja() -> None:
    assert run_program(programs.does_not_import_jinja)


def test_an_absent_extra_is_named() -> None:
    kind, message = run_program(programs.without_jinja)
    assert kind == "UnsupportedError"
    for word in ("jinja2", "pip install", '"templates"', "chat_template="):
        assert word in message
    said = run_program(programs.where_nothing_starts)
    causes = (
        "it ended with exit code 1",
        "FileNotFoundError: ",
        "sys.executable is empty",
        "sys.executable is",
    )
    for message, why in zip(said, causes, strict=True):
        assert message.startswith("UnsupportedError: ")
        assert "did not start" in message
        assert why in message


def test_a_signal_handler_may_run_a_template() -> None:
    assert run_program(programs.in_a_handler) == 1


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_damaged_template_gives_a_text_or_an_error(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([CHATML, ALPACA, GUARD, TRANSLATE, GEMMA_LIKE]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 30)))
        again = data.draw(st.sampled_from([0, 0, 1, 3]))
        text = text[:start] + text[start:end] * again + text[end:]
    assert isinstance(outcome(text), (str, UnsupportedError, InvalidRequestError))
