"""Python functions as users write them for models to call, in every way of annotating and describing."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Literal, Optional, Union


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def plain(text: str, count: int, ratio: float, flag: bool) -> None:
    """Does it.

    Args:
        text: A text.
        count: How many.
        ratio: A share.
        flag: Whether.
    """


def collections(
    names: list[str], sizes: dict[str, int], pair: tuple[int, str], loose: list, free: dict[str, Any]
) -> dict[str, float]:
    """Takes collections.

    A second paragraph,
    in two lines.

    Args:
        names: The names, in a text
            of two lines.
        sizes (dict): A size for each name.
        pair: Two things.
        loose: Anything.
        free: Anything, by name.

    Returns:
        What is left
        of it.

    Raises:
        ValueError: It does not fit.
    """
    return {}


def optionals(
    a: Optional[int] = None,  # noqa: UP045  as users write it
    b: str | None = None,
    c: Union[int, str] = 1,  # noqa: UP007
    d: list[int] | str = "x",
    e: int | float | None = None,
    f: str = "default",
) -> str:
    """
    Optional arguments.

    Args:
        a: One.
        b: Two.
        c: Three.
        d: Four.
        e: Five.
        f: Six.

    Returns:
        str: The answer.
    """
    return ""


def choices(
    unit: Unit, level: Level, mode: Literal["fast", "slow"], mixed: Literal[1, "two", None], drink: str
) -> int:
    """Choices.

    Args:
        unit: The unit.
        level: The level.
        mode: The mode.
        mixed: Several types.
        drink: What to drink (choices: ["tea", "coffee"])
    """
    return 0


def nested(table: dict[str, list[dict[str, float]]], options: list[Literal["a", "b"] | None]) -> list[str]:
    """Types within types.

    Args:
        table: A table.
        options: Options.
    """
    return []


def nothing() -> str:
    """Needs nothing."""
    return ""


# transformers describes these, too.
COMMON: tuple[Callable[..., Any], ...] = (plain, collections, optionals, choices, nested, nothing)


def numpy_style(city: str, days: int = 1, *names: str, **more: str) -> str:
    """The weather.

    Longer words about it.

    Parameters
    ----------
    city : str
        Its name,
        in English.
    days : int, optional
        How many days.

    Returns
    -------
    str
        The weather.

    Examples
    --------
    >>> 1 + 1
    2
    """
    return city


def sphinx_style(city: str, days: int = 1) -> str:
    """The weather.

    Longer words about it.

    :param str city: Its name,
        in English.
    :param days: How many days.
    :type days: int
    :returns: The weather.
    :raises ValueError: no such place
    """
    return city


@dataclasses.dataclass
class Point:
    """A place.

    Attributes:
        x: Not read here.

    Args:
        x: To the east.
    """

    x: float
    y: float = 0.0
    unit: Unit = Unit.CELSIUS
