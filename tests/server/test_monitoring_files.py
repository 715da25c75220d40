"""Tests that the files with alerts and with the dashboard use only metrics that the server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gemlet.chat import Content
from support.paths import ROOT
from support.scripted_streams import chunk, saying
from support.servers import serving

pytestmark = pytest.mark.extra("serve")
FOLDER = ROOT / "python/gemlet/server/monitoring"
NAME = re.compile(r"gemlet:[a-z0-9_]+")


@pytest.fixture(scope="module")
def known() -> set[str]:
    with serving() as server:
        with saying(chunk(Content("a")), chunk(Content("b")), chunk(reason="stop")):
            server.post("/v1/completions", {"prompt": "x"})
        text = server.ask("GET", "/metrics").body.decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    return set(kinds) | {f"{name}_bucket" for name, kind in kinds.items() if kind == "histogram"}


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_the_files_name_only_known_metrics(name: str, known: set[str]) -> None:
    named = set(NAME.findall((FOLDER / name).read_text()))
    assert len(named) >= 5
    assert named <= known


def test_the_dashboard_is_complete() -> None:
    board: Any = json.loads((FOLDER / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")


def test_every_alert_has_an_explanation() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    count = text.count("- alert:")
    assert count == text.count("expr:") == text.count("summary:") == text.count("severity:")


def test_the_guide_names_the_files() -> None:
    guide = Path(FOLDER.parent / "README.md").read_text()
    assert "monitoring/alerts.yml" in guide
    assert "monitoring/grafana.json" in guide
