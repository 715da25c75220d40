"""Tests of the web page at ``/`` in a real browser: chatting, stopping, keys, errors, small screens, use with
the keyboard only, and colors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemlet.chat import Content, Reasoning
from support.browser import Browser, browsing, script
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extra("serve")]
END = chunk(reason="stop")
READY = "#state[data-state=ready]"
DONE = ".assistant:last-child [data-action=again]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: RunningServer) -> Iterator[Any]:
    """A page that is ready. After the test, the fixture checks that the browser reported no error and sent no
    request to another server."""
    browser.complaints.clear()
    browser.asked.clear()
    opened = browser.open(server.url)
    opened.wait_for_selector(READY)
    yield opened
    opened.context.close()
    assert browser.complaints == []
    assert [url for url in browser.asked if not url.startswith(server.url)] == []


def say(page: Any, text: str, until: str = DONE) -> None:
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(until)


def last_reply(page: Any) -> str:
    return str(page.locator(".assistant .text").last.inner_text())


def test_a_conversation_with_the_demo_model(page: Any) -> None:
    assert page.title() == "gemlet"
    assert page.locator("#model").input_value() == "demo"
    page.click("#open-settings")
    page.fill("[name=max_tokens]", "12")
    page.click("#close-settings")
    for question in ("Who is there?", "And who else?"):
        say(page, question)
        assert last_reply(page)
    assert re.search(r"\d+ tokens? · .*first after [\d.]+ m?s", page.locator(".figures").last.inner_text())
    assert page.locator(".turn").count() == 4
    assert page.locator("#question").input_value() == ""
    page.reload()
    assert page.locator(".turn").count() == 4
    page.click("#new")
    assert page.locator(".turn").count() == 0
    assert page.locator("#welcome").is_visible()


def test_the_page_sends_its_settings(page: Any) -> None:
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    for name, value in {"temperature": "0.5", "top_k": "7", "seed": "3", "max_tokens": "4"}.items():
        page.fill(f"[name={name}]", value)
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as first:
        say(page, "One")
    with page.expect_request("**/v1/chat/completions") as second:
        say(page, "Two")
    asked = first.value.post_data_json
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
    ]
    assert [m["role"] for m in second.value.post_data_json["messages"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert {name: asked[name] for name in ("model", "temperature", "top_k", "seed", "max_tokens")} == {
        "model": "demo",
        "temperature": 0.5,
        "top_k": 7,
        "seed": 3,
        "max_tokens": 4,
    }
    assert "top_p" not in asked
    page.reload()
    page.wait_for_selector(READY)
    assert page.locator("#system").input_value() == "Be brief."


@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop(page: Any, server: RunningServer, by: str) -> None:
    with saying(chunk(Content("It was")), 2 * PATIENCE, END) as begun:
        say(page, "Go on", ".writing")
        page.click("#stop") if by == "button" else page.keyboard.press("Escape")
        page.wait_for_selector(DONE)
        server.wait_idle()
    assert begun[0].was_cancelled
    assert last_reply(page) == "It was"
    assert "stopped" in page.locator(".figures").inner_text()
    assert page.locator(".problem").count() == 0
    assert page.evaluate("document.activeElement.id") == "question"


def test_regenerate_and_edit(page: Any) -> None:
    with saying(chunk(Content("First")), END):
        say(page, "Question")
    with saying(chunk(Content("Second")), END):
        page.click("[data-action=again]")
        page.wait_for_selector("text=Second")
    assert page.locator(".turn").count() == 2
    page.wait_for_selector(DONE)
    page.locator(".user").hover()
    page.click("[data-action=edit]")
    assert page.locator("#question").input_value() == "Question"
    assert page.locator(".turn").count() == 0


def test_thoughts_are_folded(page: Any) -> None:
    steps = [chunk(Reasoning("Water <b>runs</b> down.")), 0.3, chunk(Content("Down.")), END]
    with saying(*steps):
        say(page, "Where does water run?", "summary:text('Thinking')")
        page.wait_for_selector(DONE)
    thought = page.locator(".thought div")
    assert not thought.is_visible()
    assert page.locator("summary").inner_text().startswith("Thought for ")
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    assert thought.inner_text() == "Water <b>runs</b> down."
    assert last_reply(page) == "Down."


def test_the_page_never_treats_text_of_a_model_as_markup(page: Any, browser: Browser) -> None:
    text = (
        "<script>document.title = 'bad'</script><img src=x onerror=\"document.title = 'bad'\">\n\n"
        "![p](https://evil.example/p.png) [j](javascript:document.title='bad') [d](data:text/html,x)\n\n"
        '<style>body { display: none }</style>\n\n```html"><b>\n</code></pre><script>1</script>\n```\n'
    )
    with saying(chunk(Content(text), Reasoning(text)), END):
        say(page, text)
    assert page.title() == "gemlet"
    log = page.locator("#log")
    for name in ("script", "img", "style", "iframe", "b"):
        assert log.locator(name).count() == 0
    assert [a.get_attribute("href") for a in log.locator("a").all()] == ["https://evil.example/p.png"]
    assert "onerror=" in last_reply(page)
    assert page.locator(".user .text").inner_text() == text.strip()
    assert not any("evil" in url for url in browser.asked)


def test_nothing_can_add_a_script(browser: Browser, server: RunningServer) -> None:
    opened = browser.open(server.url)
    opened.wait_for_selector(READY)
    added = opened.evaluate(
        """() => {
            const failed = [];
            try { document.body.innerHTML = '<p>x</p>'; } catch (error) { failed.push(error.name); }
            const script = document.createElement('script');
            try { script.text = 'bad = 1'; document.body.append(script); } catch (e) { failed.push(e.name); }
            return [failed, window.bad ?? null];
        }"""
    )
    assert added == [["TypeError", "TypeError"], None]
    opened.context.close()


def test_the_page_shows_errors(page: Any, browser: Browser) -> None:
    with saying(chunk(Content("Half")), ZeroDivisionError("x")):
        say(page, "One", ".problem")
    assert "the server failed" in page.locator(".problem").inner_text()
    assert last_reply(page) == "Half"
    with saying(chunk(Content("Whole")), END):
        page.click("text=Try again")
        page.wait_for_selector("text=Whole")
    assert page.locator(".problem").count() == 0
    page.route("**/v1/chat/completions", lambda route: route.abort())
    say(page, "Two", ".problem")
    assert page.locator(".problem").inner_text() == "The server cannot be reached."
    page.unroute("**/v1/chat/completions")
    page.click("#open-settings")
    page.fill("[name=temperature]", "1.5")
    page.fill("[name=max_tokens]", "3")
    page.click("#close-settings")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "Three", ".turn:nth-child(6) [data-action=again]")
    # The first question got no reply, so the page joins it with the next question.
    assert asked.value.post_data_json["messages"][-1] == {"role": "user", "content": "Two\n\nThree"}
    assert len(browser.complaints) == 1  # the browser logs the request that was cut off
    browser.complaints.clear()


def test_the_page_after_the_server_has_stopped(browser: Browser) -> None:
    with serving() as server:
        opened = browser.open(server.url)
        opened.wait_for_selector(READY)
    opened.click("#open-settings")
    opened.wait_for_selector("#state[data-state=lost]")
    assert opened.locator("#state").inner_text() == "not reachable"
    opened.context.close()


def test_keys(browser: Browser, tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    file = str(tmp_path / "keys.db")
    store = KeyStore(file, create=True)
    token = store.create("alice")
    with serving(Settings(keys=file)) as server:
        opened = browser.open(server.url)
        opened.wait_for_selector("#keys[open]")
        opened.keyboard.press("Escape")
        assert opened.locator("#keys").is_visible()
        opened.fill("#key", "gemlet-wrong")
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#key-error:text('does not take')")
        assert opened.evaluate("sessionStorage.length + localStorage.length") == 0
        opened.fill("#key", token)
        opened.keyboard.press("Enter")
        opened.wait_for_selector(READY)
        with saying(chunk(Content("Yes")), END):
            say(opened, "Who is there?")
        assert last_reply(opened) == "Yes"
        kept = opened.evaluate("JSON.stringify([{...localStorage}, document.cookie])")
        assert token not in kept
        assert opened.evaluate("sessionStorage['gemlet.key']") == token
        opened.reload()
        opened.wait_for_selector(READY)
        store.revoke("alice")
        say(opened, "And now?", "#keys[open]")
        opened.context.close()
    store.close()


def test_the_state_of_the_server(page: Any, server: RunningServer) -> None:
    with saying(chunk(Content("It")), 30.0, END):
        say(page, "Go on", ".writing")
        page.wait_for_selector("#state:has-text('1 running')")
        page.keyboard.press("Escape")
    page.click("#open-settings")
    page.wait_for_selector("#models dt:text('Speed')")
    shown = page.locator("#settings").inner_text()
    assert re.search(r"Weights\s+\d+(\.\d)? MB", shown)
    assert re.search(r"Speed\s+\d+\.\d tokens/s", shown)
    assert "Requests\n0 of 256" in shown or re.search(r"Requests\s+0 of 256", shown)


@pytest.mark.parametrize("width", [320, 390])
def test_small_screens(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 640})
    wide = "| a | b |\n|---|---|\n| " + "x" * 300 + " | y |\n\n```\n" + "z" * 300 + "\n```\n\n" + "w" * 300
    with saying(chunk(Content(wide)), END):
        say(page, "v" * 300)
    for opened in (False, True):
        if opened:
            page.click("#open-settings")
        sizes = page.evaluate(
            "[document.documentElement, document.getElementById('scroller'),"
            " document.querySelector('.drawer-body')].map(e => e.scrollWidth - e.clientWidth)"
        )
        assert sizes == [0, 0, 0]
    page.click("#close-settings")
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= width
    assert box["height"] >= 24


def test_a_long_reply_is_followed_until_somebody_scrolls(page: Any) -> None:
    lines = [chunk(Content(f"Line {i}.\n\n")) for i in range(60)]
    with saying(*lines, 0.4, *lines, END):
        say(page, "Much", "text=Line 59.")
        page.wait_for_function("scroller.scrollTop > 500")
        page.locator("#scroller").evaluate("e => { e.scrollTop = 0; }")
        page.wait_for_selector(DONE, state="attached")
        assert page.evaluate("scroller.scrollTop") == 0
    page.click("#to-end")
    page.wait_for_function("scroller.scrollTop > 500")


def test_the_page_can_be_used_with_the_keyboard_only(page: Any) -> None:
    with saying(chunk(Content("Yes, `x`.\n\n```\ncode\n```")), END):
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("Who")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("is there?")
        page.keyboard.press("Enter")
        page.wait_for_selector(DONE)
    assert page.locator(".user .text").inner_text() == "Who\nis there?"
    page.evaluate("document.body.focus(), document.activeElement.blur()")
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(e => e.ariaLabel || e.id || e.textContent)(document.activeElement)"))
    for name in (
        "model",
        "New chat",
        "Settings and server",
        "Edit your message",
        "Copy the code",
        "Regenerate",
    ):
        assert name in reached, reached
    page.locator("#open-settings").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.getElementById('settings').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"


def test_everything_has_a_name(page: Any) -> None:
    with saying(chunk(Reasoning("Hm."), Content("Yes.\n\n```\ncode\n```")), END):
        say(page, "Who is there?")
    for opened in (None, "#open-settings"):
        if opened:
            page.click(opened)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, textarea, a, dialog')]
                .filter(e => e.checkVisibility() && !(e.ariaLabel || e.textContent.trim() || e.labels?.length
                    || e.getAttribute('aria-labelledby')))
                .map(e => e.outerHTML)"""
        )
        assert nameless == []
    assert page.locator("#log").get_attribute("role") == "log"
    assert page.locator("#log").get_attribute("aria-busy") == "false"
    assert page.locator("#said").inner_text().startswith("The reply is complete")
    assert page.evaluate("[...document.querySelectorAll('h1, h2, h3')].length") >= 5


@pytest.mark.parametrize("look", ["light", "dark"])
def test_light_and_dark_colors_can_be_read(browser: Browser, server: RunningServer, look: str) -> None:
    page = browser.open(server.url, color_scheme=look)
    page.wait_for_selector(READY)
    text = "Yes, `x`.\n\n> q\n\n[a](https://example.com)\n\n```\ncode\n```"
    with saying(chunk(Reasoning("Hm."), Content(text)), ZeroDivisionError("x")):
        say(page, "Who is there?", ".problem")
    page.click("#open-settings")
    found = page.evaluate(script("contrasts"))
    assert len(found) > 30
    assert [pair for pair in found if pair[0] < 4.5] == []
    paper = "getComputedStyle(document.body).backgroundColor"
    own = page.evaluate(paper)
    assert (max(json.loads(f"[{own[4:-1]}]")) < 128) is (look == "dark")
    other = {"light": "dark", "dark": "light"}[look]
    page.locator(f"[name=look][value={other}]").check()
    assert page.evaluate(paper) != own
    page.reload()
    assert page.evaluate(paper) != own
    page.context.close()


def test_a_file_that_is_dropped_does_not_replace_the_page(page: Any) -> None:
    prevented = page.evaluate(
        "['dragover', 'drop'].map(name => !document.body.dispatchEvent("
        "new DragEvent(name, { bubbles: true, cancelable: true })))"
    )
    assert prevented == [True, True]
    assert page.locator("#attachments").is_hidden()


def test_words_are_shown_when_they_arrive(page: Any) -> None:
    with saying(*[step for i in range(40) for step in (chunk(Content(f"word{i} ")), 0.02)], END):
        say(page, "Go on", ".writing")
        early = last_reply(page)
        time.sleep(0.3)
        later = last_reply(page)
        page.wait_for_selector(DONE)
    assert 0 < len(early) < len(later) < len(last_reply(page))
