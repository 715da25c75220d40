"""Generates random conversations with tools, and renders them with the official chat templates."""

from __future__ import annotations

import json
import random
from functools import cache, partial
from typing import Any

from support.extras import optional
from support.paths import DATA

jinja2 = optional("jinja2")

TEMPLATES = DATA / "chat_templates"

TEXTS = [
    "Hi",
    "  How are you? \n\n",
    "two\n\n lines",
    "",
    " ",
    "Grüße, 世界 😀\u00a0",
    "<turn|>\n<|turn>model\nSure!",
    '<|"|> and <bos> and {a:1}',
    "if (x > 1) {\n    return y;\n}",
]
NAMES = ["city", "Days", "unit", "filter", "a_b", "x-y", "éa", "description", "type", "required", "B", "b"]
FUNCTIONS = ["get_weather", "search", "ns.tool-2", "f"]


def template_text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def compiled(text: str) -> jinja2.Template:
    """A chat template, compiled in the same way as in transformers."""
    environment = optional("jinja2.sandbox").ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(text)


class Conversations:
    """Generates random conversations from a seed. A conversation is a dictionary of keyword arguments for
    :meth:`ChatFormat.render`.

    With ``native``, the results of tools are in the assistant's message (``tool_responses``). Otherwise, each
    result is a message with the role ``tool``.
    """

    def __init__(self, seed: int, *, native: bool) -> None:
        self.random = random.Random(seed)
        self.native = native

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def some(self, choices: list[Any], most: int) -> list[Any]:
        return self.random.sample(choices, self.random.randint(0, min(most, len(choices))))

    def text(self) -> str:
        return self.random.choice(TEXTS)

    def value(self, depth: int = 0) -> Any:
        kind = self.random.randrange(9 if depth < 3 else 6)
        if kind >= 6:
            items = [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
            if kind == 6:
                return items
            return dict(zip(self.some(NAMES, 4), items, strict=False))
        number = self.random.choice([0, -7, 123456789012, 0.5, -1e-9, 1e22, 2.0])
        return [self.text(), number, True, False, None, "word"][kind]

    def arguments(self) -> dict[str, Any]:
        return {name: self.value() for name in self.some(NAMES, 4)}

    def schema(self, depth: int = 0) -> dict[str, Any]:
        kinds = ["string", "STRING", "integer", "number", "boolean", "null", ["string", "null"]]
        if depth < 3:
            kinds += ["array", "array", "object", "Object"]
        kind = self.random.choice(kinds)
        schema: dict[str, Any] = {"type": kind}
        if self.chance(0.05):
            del schema["type"]
        if self.chance(0.6):
            schema["description"] = self.text()
        if self.chance(0.3):
            schema["nullable"] = self.chance(0.7)
        if self.chance(0.4):
            schema["enum"] = [self.text(), "b", 3, True, None][: self.random.randint(0, 5)]
        if self.chance(0.2):
            schema["default"] = self.value()
        name = str(kind).lower()
        if name == "array" and self.chance(0.9):
            schema["items"] = self.schema(depth + 1) if self.chance(0.9) else {}
            if self.chance(0.2):
                schema["items"]["minLength"] = None
        if name == "object":
            if self.chance(0.8):
                schema["properties"] = self.properties(depth + 1)
            if self.chance(0.5):
                schema["additionalProperties"] = self.random.choice([False, {"type": "string"}, {}])
            if self.chance(0.6):
                schema["required"] = self.some(NAMES, 3)
        return schema

    def properties(self, depth: int = 0) -> dict[str, Any]:
        return {name: self.schema(depth) for name in self.some(NAMES, 4)}

    def tool(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.random.choice(FUNCTIONS), "description": self.text()}
        if self.chance(0.9):
            function["parameters"] = {"type": "object", "properties": self.properties()}
            if self.chance(0.6):
                function["parameters"]["required"] = self.some(NAMES, 3)
            if self.chance(0.1):
                del function["parameters"][self.random.choice(["type", "properties"])]
        if self.chance(0.15):
            function["response"] = {"type": self.random.choice(["object", "string"])}
            if self.chance(0.5):
                function["response"]["description"] = self.text()
        return {"type": "function", "function": function}

    def content(self) -> Any:
        if self.chance(0.75):
            return self.text()
        return [{"type": "text", "text": self.text()} for _ in range(self.random.randint(0, 3))]

    def reply(self) -> Any:
        if self.chance(0.2):
            return f"<|channel>thought\n{self.text()}\n<channel|>{self.text()}"
        return self.content()

    def assistant(self) -> list[dict[str, Any]]:
        """An assistant message. If it calls tools, the results of the tools follow."""
        message: dict[str, Any] = {"role": "assistant", "content": self.reply()}
        if self.chance(0.4):
            message[self.random.choice(["reasoning", "reasoning_content", "thinking"])] = self.text() or None
        if not self.chance(0.5):
            return [message]
        if self.chance(0.6):
            message["content"] = self.random.choice([None, "", []])
            if self.chance(0.3):
                del message["content"]
        calls = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": self.arguments()}}
            for i, name in enumerate(self.random.choices(FUNCTIONS, k=self.random.randint(1, 3)))
        ]
        message["tool_calls"] = calls
        if self.chance(0.15):
            return [message]  # the conversation ends before the results
        results = []
        for call in calls if self.chance(0.5) else self.random.sample(calls, len(calls)):
            body: Any = self.content()
            if self.native:
                response = self.random.choice([self.value(), self.arguments()])
                results.append({"name": call["function"]["name"], "response": response})
            else:
                results.append({"role": "tool", "tool_call_id": call["id"], "content": body})
        if self.native:
            message["tool_responses"] = results
            return [message]
        return [message, *results]

    def conversation(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        if self.chance(0.4):
            role = self.random.choice(["system", "developer"])
            messages.append({"role": role, "content": self.text()})
        for _ in range(self.random.randint(0, 3)):
            messages.append({"role": "user", "content": self.content()})
            for _ in range(self.random.choice([0, 1, 1, 1, 2, 3])):
                messages += self.assistant()
            if self.chance(0.05):
                messages.append({"role": "system", "content": self.text()})
        if not messages or self.chance(0.5):
            messages.append({"role": "user", "content": self.content()})
        return {
            "messages": messages,
            "tools": [self.tool() for _ in range(self.random.choice([0, 0, 1, 2]))] or None,
            "thinking": self.chance(0.4),
            "add_generation_prompt": self.chance(0.8),
        }


def official(text: str, conversation: dict[str, Any]) -> str:
    """The prompt that the template ``text`` makes of a conversation. The reasoning is passed under the name
    that the templates read."""
    messages = []
    for message in conversation["messages"]:
        reasoning = message.get("reasoning") or message.get("thinking")
        messages.append(message | ({"reasoning_content": reasoning} if reasoning else {}))
    return compiled(text).render(
        bos_token="<bos>",
        eos_token="<eos>",
        messages=messages,
        tools=conversation["tools"],
        enable_thinking=conversation["thinking"],
        add_generation_prompt=conversation["add_generation_prompt"],
    )
