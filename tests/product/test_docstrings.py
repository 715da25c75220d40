"""Tests that every public function, class and method has a docstring with an example. In CI, the examples run
as doctests."""

from __future__ import annotations

import importlib
import inspect
from doctest import DocTestParser

import pytest

# In these modules, the names in ``__all__`` are public.
MODULES = (
    "gemlet",
    "gemlet.chat",
    "gemlet.config",
    "gemlet.errors",
    "gemlet.generation",
    "gemlet.tokenizer",
)


def public() -> dict[str, object]:
    """All public functions and classes by name, and all methods and properties of the classes, also inherited
    ones."""
    found: dict[str, object] = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not (inspect.isfunction(thing) or inspect.isclass(thing)) or thing in found.values():
                continue
            name = f"{module.__name__}.{name}"
            found[name] = thing
            bases = reversed(inspect.getmro(thing)) if inspect.isclass(thing) else ()
            for owner in (base for base in bases if base.__module__.startswith("gemlet")):
                for key, member in vars(owner).items():
                    member = getattr(member, "__func__", member)  # the function of a class method
                    if key.startswith("_") or not (
                        inspect.isfunction(member) or isinstance(member, property)
                    ):
                        continue
                    # Methods without their own docstring inherit the docstring of the base class.
                    if member.__doc__ or f"{name}.{key}" not in found:
                        found[f"{name}.{key}"] = member
    return found


PUBLIC = public()


def docstring(name: str) -> str:
    thing = PUBLIC[name]
    return (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""


def calls(text: str) -> str:
    return "".join(example.source for example in DocTestParser().get_examples(text))


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_with_example(name: str) -> None:
    text = docstring(name)
    around, _, last = name.rpartition(".")
    assert text, f"{name} has no docstring"
    assert not text.startswith(f"{last}("), f"{name} has only the docstring that dataclass made"
    if isinstance(PUBLIC[name], property):
        return
    # A method needs no example of its own if the example of its class uses the method.
    shown = around in PUBLIC and f".{last}(" in calls(docstring(around))
    assert calls(text) or shown, f"{name} has no example"


def test_public_names_are_found() -> None:
    assert {"gemlet.load", "gemlet.Model.adapters", "gemlet.Tokenizer.from_file"} <= PUBLIC.keys()
    assert {"gemlet.chat.GemmaFormat.render", "gemlet.chat.Reasoning"} <= PUBLIC.keys()
