"""An example of a request body for each path of the server that accepts a body. Each body is valid if the
model supports the request."""

from __future__ import annotations

from typing import Any

QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
PREDICATE = {"type": "predicate", "name": "night", "instructions": "Is it night?"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": QUESTION,
        "max_tokens": 2,
        "stream": True,
        "tools": [TOOL],
        "stop": ["x"],
    },
    "/v1/completions": {"prompt": ["The door"], "max_tokens": 2, "seed": 1, "n": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2, "instructions": "y", "stream": True},
    "/v1/embeddings": {"input": "x", "encoding_format": "float"},
    "/v1/decisions": {"model": "demo", "input": "The moon rose.", "questions": [PREDICATE]},
    "/v1/messages": {
        "model": "demo",
        "max_tokens": 2,
        "system": [{"type": "text", "text": "x"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
        ],
    },
    "/v1/messages/count_tokens": {"model": "demo", "messages": QUESTION},
    "/api/chat": {"model": "demo", "messages": QUESTION, "options": {"num_predict": 2}},
    "/api/generate": {"model": "demo", "prompt": "The", "options": {"num_predict": 2, "top_k": 3}},
    "/api/embed": {"model": "demo", "input": ["x"]},
    "/api/show": {"model": "demo"},
    "/tokenize": {"messages": QUESTION},
    "/detokenize": {"tokens": [5, 6]},
}
