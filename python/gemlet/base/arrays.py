"""NumPy, imported at its first use. Generating text rarely needs NumPy, and importing it would take a fourth
of gemlet's start time."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gemlet.base.handlers import importing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import TypeIs

__all__ = ["NDArray", "is_array", "is_bool", "np"]


def is_array(value: object) -> TypeIs[NDArray[Any]]:
    """Whether ``value`` is a NumPy array. Does not import NumPy.

    >>> is_array([1, 2]), is_array(np.zeros(2))
    (False, True)
    """
    return isinstance(value, getattr(sys.modules.get("numpy"), "ndarray", ()))


def is_bool(value: object) -> TypeIs[bool]:
    """Whether ``value`` is a bool of Python or NumPy.

    >>> is_bool(np.bool_(True)), is_bool(1)
    (True, False)
    """
    return isinstance(value, (bool, getattr(sys.modules.get("numpy"), "bool_", bool)))


if not TYPE_CHECKING:

    class _NumPy:
        """Stands for the module ``numpy``. Each attribute is looked up in the module once."""

        def __getattr__(self, name: str) -> Any:
            with importing():
                found = getattr(import_module("numpy"), name)
            setattr(self, name, found)
            return found

    class _AnyArray(type):
        def __instancecheck__(cls, value: object) -> bool:
            return is_array(value)

    class NDArray(metaclass=_AnyArray):
        """Stands for an array of any type in annotations that are read at run time."""

        def __class_getitem__(cls, item: object) -> type:
            return cls

        def __iter__(self) -> None: ...

    np = _NumPy()
