"""Tests of the web page's Markdown: the elements that it makes of texts, and texts that could take long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.browser import browsing, script
from support.pace import in_time
from support.servers import RunningServer

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.extra("serve")]

SHOW = script("markdown")
CASES = {
    "plain": ("a < b & c", "<p>a &lt; b &amp; c</p>"),
    "lines": ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
    "bold": ("**a** __b__ x**y**z", "<p><strong>a</strong> <strong>b</strong> x<strong>y</strong>z</p>"),
    "emphasis": ("*a* _b_ a_b_c 2*3*4", "<p><em>a</em> <em>b</em> a_b_c 2<em>3</em>4</p>"),
    "both": ("***a*** **b *c* d**", "<p><strong><em>a</em></strong> <strong>b <em>c</em> d</strong></p>"),
    "not closed": ("**a *b `c [d](e", "<p>**a *b `c [d](e</p>"),
    "signs alone": ("2 * 3 ** 4 _ 5", "<p>2 * 3 ** 4 _ 5</p>"),
    "strike": ("~~a~~", "<p><s>a</s></p>"),
    "escapes": (r"\*a\* \<b", "<p>*a* &lt;b</p>"),
    "code": ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
    "link": ("[**a**](https://x.org/b)", "<p><a><strong>a</strong></a></p>"),
    "addresses": ("(https://x.org/a_b).", "<p>(<a>https://x.org/a_b</a>).</p>"),
    "other schemes": ("[a](javascript:b) [c](file:///d)", "<p>[a](javascript:b) [c](file:///d)</p>"),
    "headings": ("# a\n### *b* ##\n#c", "<h3>a</h3><h5><em>b</em></h5><p>#c</p>"),
    "rule": ("a\n\n---\n***", "<p>a</p><hr><hr>"),
    "list": ("Some:\n* a\n* b", "<p>Some:</p><ul><li>a</li><li>b</li></ul>"),
    "numbers": ("3. a\n\n4. b", "<ol><li>a</li><li>b</li></ol>"),
    "in one another": (
        "1. a\n   - b\n     - c\n   - d\n2. e",
        "<ol><li>a<ul><li>b<ul><li>c</li></ul></li><li>d</li></ul></li><li>e</li></ol>",
    ),
    "four blanks": ("* a\n    * b\n* c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    "code in a list": (
        "- a\n  ```\n  x\n    y\n  ```\n- b",
        "<ul><li>a<pre>code:x\n  y</pre></li><li>b</li></ul>",
    ),
    "parts of an item": ("- a\n\n  b\n\nc", "<ul><li>a<p>b</p></li></ul><p>c</p>"),
    "two lists": ("- a\n1. b", "<ul><li>a</li></ul><ol><li>b</li></ol>"),
    "quote": ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
    "fence": ("```py\n<b>\n# c\n```\nd", "<pre>py:&lt;b&gt;\n# c</pre><p>d</p>"),
    "fence in a fence": ("````\n```\n````", "<pre>code:```</pre>"),
    "open fence": ("~~~\na\n", "<pre>code:a\n</pre>"),
    "table": (
        "| a | b |\n|:-:|---|\n| *c* | d |\n\ne",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td><em>c</em></td><td>d</td></tr></tbody></table><p>e</p>",
    ),
    "no table": ("a | b\nc", "<p>a | b<br>c</p>"),
    "Windows": ("a\r\n\r\nb", "<p>a</p><p>b</p>"),
}
LONG = 100_000
HOSTILE = {
    **{sign: sign * LONG for sign in "*_`~[]()<>#|-\\"},
    **{f"{sign} and a blank": f"{sign} " * LONG for sign in "*_`[>-#|"},
    **{f"{sign} and a letter": f"{sign}a" * LONG for sign in ("*", "**", "_", "`", "~~", "[", "[a](")},
    "growing runs": " ".join("`" * i for i in range(1, 400)),
    "growing stars": " ".join("*" * i + "a" for i in range(1, 400)),
    "quotes": ">" * LONG + "a",
    "quotes in lines": "> > > > > > > > > > > > > a\n" * 5000,
    "items": "- " * LONG + "a",
    "steps": "\n".join(" " * (2 * i) + "- a" for i in range(400)),
    "blank lines in a list": "- a\n" + "\n" * LONG + "b",
    "fences": "```\n" * 20_000,
    "tables": "|a\n|-\n" * 20_000,
    "addresses": "https://" * 20_000,
    "unicode": "\U0001f600\u202e\u0000" * 30_000,
}


@pytest.fixture(scope="module")
def page(server: RunningServer) -> Iterator[Any]:
    with browsing() as browser:
        yield browser.open(server.url)


@pytest.mark.parametrize("name", CASES)
def test_markdown_becomes_elements(page: Any, name: str) -> None:
    text, expected = CASES[name]
    assert page.evaluate(SHOW, [text]) == expected
    # During a stream, the page shows each beginning of the text. The final elements must be the same.
    assert page.evaluate(SHOW, [text[:end] for end in range(len(text) + 1)]) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_long_texts_are_rendered_quickly(page: Any, name: str) -> None:
    started = time.monotonic()  # wall time, because the browser works in other processes
    page.evaluate(SHOW, [HOSTILE[name]])
    taken = time.monotonic() - started
    assert in_time(taken, 3)
