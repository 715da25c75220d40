"""The fixture ``server``: one running server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.servers import RunningServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving() as running:
        yield running
