"""Python functions as tools: their description, and how they are called with a model's arguments."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NewType, TypedDict, TypeVar

import pytest

from gemlet.chat import FUNCTION_GEMMA, describe_function
from gemlet.chat.functions import PythonTool
from gemlet.errors import InvalidRequestError
from support import tool_functions
from support.tool_functions import COMMON, Level, Point, Unit

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "tool_schemas.json").read_text(encoding="utf-8"))


class Place(TypedDict, total=False):
    """A place.

    Args:
        name: What it is called.
    """

    name: str
    point: Point


@dataclasses.dataclass
class Itself:
    inner: list[Itself]


Metres = NewType("Metres", float)
T = TypeVar("T")


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    found = describe_function(function)["function"]["parameters"]["properties"]
    assert isinstance(found, dict)
    return found


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    read = PythonTool.of(function, "tools[0]").read(arguments)
    return function(*read.args, **read.kwargs)


# --- descriptions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", COMMON, ids=lambda function: function.__name__)
def test_descriptions_are_those_of_transformers(function: Callable[..., Any]) -> None:
    assert json.dumps(describe_function(function)) == json.dumps(GOLDEN["schemas"][function.__name__])


@pytest.mark.parametrize("function", [tool_functions.numpy_style, tool_functions.sphinx_style])
def test_docstrings_of_other_styles(function: Callable[..., Any]) -> None:
    described = describe_function(function)["function"]
    assert described["description"] == "The weather.\n\nLonger words about it."
    assert described["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, in English."},
            "days": {"type": "integer", "description": "How many days."},
        },
        "required": ["city"],
    }
    assert described["return"] == {"type": "string", "description": "The weather."}


def test_types_beyond_those_of_transformers() -> None:
    def function(
        place: Place,
        point: Point,
        many: tuple[int, ...],
        unique: set[str],
        sequence: Sequence[float],
        iterable: Iterable[Any],
        mapping: Mapping[str, bool],
        height: Metres,
        day: Annotated[int, "The day."] = 1,
        anything: Any = None,
    ) -> None: ...

    unit = {"type": "string", "enum": ["c", "f"]}
    point = {
        "type": "object",
        "properties": {
            "x": {"type": "number", "description": "To the east."},
            "y": {"type": "number"},
            "unit": unit,
        },
        "required": ["x"],
    }
    assert properties(function) == {
        "place": {
            "type": "object",
            "properties": {"name": {"type": "string", "description": "What it is called."}, "point": point},
        },
        "point": point,
        "many": {"type": "array", "items": {"type": "integer"}},
        "unique": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "sequence": {"type": "array", "items": {"type": "number"}},
        "iterable": {"type": "array", "items": {}},
        "mapping": {"type": "object", "additionalProperties": {"type": "boolean"}},
        "height": {"type": "number"},
        "day": {"type": "integer", "description": "The day."},
        "anything": {},
    }


def test_typed_dicts_of_typing_extensions() -> None:
    extensions: Any = pytest.importorskip("typing_extensions")
    members = {"a": int, "b": extensions.NotRequired[Unit], "c": extensions.Required[float]}
    typed = extensions.TypedDict("Typed", members)

    def function(x: Any) -> Any:
        return x

    function.__annotations__["x"] = typed
    assert properties(function)["x"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "string", "enum": ["c", "f"]},
            "c": {"type": "number"},
        },
        "required": ["a", "c"],
    }
    assert call(function, x={"a": 1, "b": "c", "c": 2}) == {"a": 1, "b": Unit.CELSIUS, "c": 2.0}


def test_methods_partials_and_objects() -> None:
    class Counter:
        """Counts."""

        def add(self, amount: int) -> int:
            """Adds."""
            return amount + 1

        def __call__(self, start: int) -> int:
            return start + 2

    assert describe_function(Counter().add)["function"]["name"] == "add"
    assert list(properties(Counter().add)) == ["amount"]
    assert call(Counter().add, amount=1) == 2
    assert describe_function(Counter())["function"]["name"] == "Counter"
    assert call(Counter(), start=1) == 3

    def both(a: int, b: int = 2) -> int:
        return 10 * a + b

    described = describe_function(functools.partial(both, b=7))["function"]
    assert described["name"] == "both"
    assert described["parameters"]["required"] == ["a"]
    assert call(functools.partial(both, b=7), a=1) == 17


def test_wrong_functions() -> None:
    def no_annotation(x) -> None: ...  # type: ignore[no-untyped-def]
    def unknown_name(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def no_json(x: Path) -> None: ...
    def bytes_within(x: list[bytes]) -> None: ...
    def endless(x: Itself) -> None: ...
    def of_any_type(x: T) -> T:
        return x

    for wrong, what in (
        (no_annotation, "argument x of no_annotation has no annotation"),
        (unknown_name, "cannot be read"),
        (no_json, "which JSON has no type for"),
        (bytes_within, "bytes"),
        (endless, "20 levels deep"),
        (of_any_type, "which JSON has no type for"),
        (lambda: None, "define the function with def"),
        (print, "no annotation|no signature"),  # the message depends on the version of Python
        (Path, "expected a function"),
        (3, "expected a function"),
    ):
        with pytest.raises(InvalidRequestError, match=what):
            describe_function(wrong)


def test_tools_of_every_form_make_the_same_prompt() -> None:
    def now(zone: str) -> str:
        """The time.

        Args:
            zone: The zone.
        """
        return zone

    described = describe_function(now)
    bare = described["function"]
    question = [{"role": "user", "content": "Hi"}]
    prompts = {
        FUNCTION_GEMMA.render(question, tools=[tool])  # type: ignore[list-item]
        for tool in (now, described, bare, {"type": "function", **bare})
    }
    assert len(prompts) == 1
    assert "declaration:now{" in prompts.pop()


# --- calls --------------------------------------------------------------------------------------------------


def test_arguments_become_what_the_function_takes() -> None:
    def function(
        unit: Unit,
        level: Level,
        point: Point,
        place: Place,
        pair: tuple[int, float],
        names: set[str],
        ratio: float | None,
        either: Unit | list[Level],
        table: dict[str, Level],
        count: int = 3,
    ) -> list[Any]:
        return [unit, level, point, place, pair, names, ratio, either, table, count]

    found = call(
        function,
        unit="f",
        level=2,
        point={"x": 1, "unit": "c"},
        place={"point": {"x": 2.5, "y": 1}},
        pair=[1, 2],
        names=["a", "b"],
        ratio=2,
        either=[1],
        table={"a": 1},
        count=4.0,
    )
    expected = [
        Unit.FAHRENHEIT,
        Level.HIGH,
        Point(1.0),
        {"point": Point(2.5, 1.0)},
        (1, 2.0),
        {"a", "b"},
        2.0,
        [Level.LOW],
        {"a": Level.LOW},
        4,
    ]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_arguments_by_position_and_defaults() -> None:
    def function(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, **more: int) -> tuple[Any, ...]:
        return (a, b, c, rest, d, more)

    assert call(function, a=1) == (1, 2, 3, (), 4, {})
    assert call(function, a=1, c=7, d=8) == (1, 2, 7, (), 8, {})
    with pytest.raises(InvalidRequestError, match="rest is unknown"):
        call(function, a=1, rest=[1])


def test_wrong_arguments_do_not_reach_the_function() -> None:
    def function(
        count: int, unit: Unit = Unit.CELSIUS, pair: tuple[int, int] = (1, 2), point: Point | None = None
    ) -> None:
        raise AssertionError

    for arguments, what in (
        ({}, "count is missing"),
        ({"count": "3"}, "count: got a string, expected an integer"),
        ({"count": True}, "count: got a boolean, expected an integer"),
        ({"count": 1.5}, "count: got a number, expected an integer"),
        ({"count": None}, "count: got null, expected an integer"),
        ({"count": 1, "unit": "k"}, r"unit: got 'k', expected one of \[\"c\", \"f\"\]"),
        ({"count": 1, "pair": [1]}, "pair: has 1 items; expected 2"),
        ({"count": 1, "pair": [1, "x"]}, r"pair\[1\]: got a string"),
        ({"count": 1, "point": {}}, "point.x is missing"),
        ({"count": 1, "point": {"x": 1, "unit": 3}}, "point.unit: got an integer, expected a string"),
        ({"count": 1, "other": 2}, "other is unknown; expected some of count, unit, pair, point"),
    ):
        with pytest.raises(InvalidRequestError, match=f"^{what}"):
            call(function, **arguments)  # type: ignore[arg-type]
