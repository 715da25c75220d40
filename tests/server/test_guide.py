"""Tests that the examples and the settings files in the guide to the server work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemlet.cli.parser import build_parser
from gemlet.server.settings import Settings
from support.extras import optional
from support.guides import blocks, example
from support.paths import ROOT
from support.servers import serving
from support.waiting import until

optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
GUIDE = ROOT / "python/gemlet/server/README.md"
LINE = (
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"max_tokens": 3, "messages": [{"role": "user", "content": "Who?"}]}}\n'
)


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_text(LINE)
    names: dict[str, Any] = {}
    with serving(Settings(data=str(tmp_path / "data"))) as server:
        exec(example("client").replace("http://127.0.0.1:8000", server.url), names)
        assert names["reply"].choices[0].message.content
        client = names["client"]
        for line in example("batch").splitlines():
            exec(line, names)
            if "batches.create" in line:
                until(lambda: client.batches.retrieve(names["batch"].id).status == "completed")
        client.close()
    assert '"custom_id":"a"' in capsys.readouterr().out.replace(" ", "")


@pytest.mark.parametrize("text", [text for _, text in blocks(GUIDE, "toml")])
def test_the_files_of_settings_are_read(text: str, tmp_path: Path) -> None:
    from gemlet.cli.serve import read_settings

    path = tmp_path / "serve.toml"
    path.write_text(text)
    settings, models = read_settings(build_parser("serve").parse_args(["serve", "--config", str(path)]))
    assert settings != Settings()
    assert all(model.source for model in models)
