"""Makes the page that a package index shows: README.md with links that also work away from the repository.

scikit-build-core calls `dynamic_metadata` while it builds (`[[tool.dynamic-metadata]]` in pyproject.toml). A
relative link becomes a link to the page of the file in the repository. The link of a relative picture becomes
a link to the content of the file. The address of the repository is `Repository` in `[project.urls]`, and is
written nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BRANCH = "main"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str) -> str:
    """Makes every relative link in `text` absolute, and replaces the word REPOSITORY by the address
    `repository`."""

    def absolute(match: re.Match[str]) -> str:
        mark, label, path = match.groups()
        view = "raw" if mark else "blob"
        return f"{mark}[{label}]({repository}/{view}/{BRANCH}/{path})"

    return re.sub(r"\bREPOSITORY\b", repository, _LINK.sub(absolute, text))


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata field `readme`, from README.md and the address in `project`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    repository = project["urls"]["Repository"].rstrip("/")
    return {"readme": {"content-type": "text/markdown", "text": with_absolute_links(text, repository)}}
