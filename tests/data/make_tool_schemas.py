"""Writes tool_schemas.json: the schemas that transformers makes from tests/support/tool_functions.py.

pip install transformers==5.24.0
PYTHONPATH=tests python tests/data/make_tool_schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from transformers.utils import get_json_schema

from support.tool_functions import COMMON

OUT = Path(__file__).with_name("tool_schemas.json")


def main() -> None:
    schemas = {function.__name__: get_json_schema(function) for function in COMMON}
    written = {"transformers": transformers.__version__, "schemas": schemas}
    OUT.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
