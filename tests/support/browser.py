"""Opens web pages in Debian's chromium with playwright. Tests that need the browser have the marker
``browser``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.extras import optional, why_absent
from support.paths import TESTS

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _path() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def why_no_browser() -> str | None:
    """The reason why tests cannot use a browser, or None if they can."""
    if _path() is None:
        return "needs a browser: apt install chromium"
    return why_absent("test-browser")


def script(name: str) -> str:
    """The text of a JavaScript function in ``support/programs``, which a test runs in the page."""
    return (TESTS / "support/programs" / f"{name}.js").read_text()


class Browser:
    """A browser that opens pages. :attr:`complaints` lists the errors of the pages, and :attr:`asked` lists
    the addresses that the pages request."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def open(self, url: str, *, width: int = 1200, height: int = 800, **options: Any) -> Any:
        """Opens a page in a new session, without data of earlier sessions. ``options`` go to playwright."""
        page = self._browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(url)
        return page


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser that runs during the ``with`` block."""
    playwright = optional("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox works neither for root nor in most containers.
        microphone = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
        running = driver.chromium.launch(executable_path=_path(), args=["--no-sandbox", *microphone])
        try:
            yield Browser(running)
        finally:
            running.close()
