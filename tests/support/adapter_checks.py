"""Checks that the tests of adapter files share."""

from __future__ import annotations

from pathlib import Path

import pytest

import gemlet
from gemlet.adapters.opening import open_adapter
from support.inside import core_of


def check(path: Path, model: gemlet.Model) -> None:
    """Opens, packs and releases the adapter, as load_adapter does."""
    with open_adapter(path, model.config) as files:
        files.build(core_of(model))


def refuse(path: Path, model: gemlet.Model, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        check(path, model)
    for word in words:
        assert word in str(caught.value), caught.value
    assert model.adapters == {}
