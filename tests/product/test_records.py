"""Tests of records: dataclasses whose methods Python compiles only when a program needs more than to make an
object. This makes the import of gemlet faster."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import pprint
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from gemlet.base.records import field, record, replace


@record(frozen=True)
class Pair:
    """A record at module level, because pickle finds classes by their name."""

    left: int
    right: list[int] = field(default_factory=list)


def test_a_record_is_a_dataclass() -> None:
    @record(frozen=True)
    class Base:
        x: int
        y: tuple[int, ...] = ()

    one = Base(1)
    assert one == Base(1, ())
    assert one != Base(2)
    assert hash(one) == hash(Base(1))
    assert repr(one).endswith("Base(x=1, y=())")
    assert dataclasses.replace(one, x=3) == Base(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.x = 2
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Base()


@pytest.mark.parametrize("decorator", [record, dataclasses.dataclass])
@pytest.mark.parametrize("calls_super", [False, True])
def test_a_subclass_has_the_fields_of_an_unused_record(decorator: object, calls_super: bool) -> None:
    @record(frozen=True)
    class Base:
        x: int

    if calls_super:

        class Plain(Base):
            def __init__(self, x: int) -> None:
                super().__init__(x + 1)

        assert Plain(1).x == 2
        assert Base(1).x == 1
    else:
        sub = decorator(frozen=True)(type("Sub", (Base,), {"__annotations__": {"y": int}}))
        assert [field.name for field in dataclasses.fields(sub)] == ["x", "y"]
        assert (sub(1, 2).x, sub(1, 2).y) == (1, 2)


@pytest.mark.parametrize("objects", [1, 3000])  # __init__ is compiled only after many objects
def test_a_record_and_a_dataclass_do_the_same(objects: int) -> None:
    """Makes a record and a dataclass from the same class body, and compares the results of many
    operations."""
    found = []
    for decorator, of, changed in (
        (record, field, replace),
        (dataclasses.dataclass, dataclasses.field, dataclasses.replace),
    ):

        @decorator(frozen=True)
        class Base:
            x: int
            y: list[int] = of(default_factory=list, compare=False)

        @decorator(frozen=True)
        class Sub(Base):
            z: object = of(default=None, repr=False, metadata={"shown": 1})
            kinds: ClassVar[int] = 5

            def __post_init__(self) -> None:
                if self.x < 0:
                    raise ValueError("x")

        class Own(Sub):
            def __init__(self, x: int) -> None:
                super().__init__(x)
                self.more = x  # this attribute is not a field

        one = [Sub(1) for _ in range(objects)][-1]
        with pytest.raises(ValueError, match="x"):
            Sub(-1)
        for name in ("x", "kinds", "unknown"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, name, 2)
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(one, name)
        assert one.y is not Sub(1).y
        own = Own(3)
        del own.more
        with pytest.raises(dataclasses.FrozenInstanceError):
            own.x = 5
        assert Base(1) != one
        made = dataclasses.fields(Sub)
        found.append(
            [
                *(repr(one), one == Sub(1, [2]), one == Sub(1, z=3), hash(one) == hash(Sub(1, [7]))),
                *(repr(dataclasses.replace(one, z=5)), repr(changed(one, y=[1])), vars(copy.deepcopy(one))),
                *(dataclasses.asdict(one), repr(own), own == Own(3), vars(Own(2)), Sub.z, hasattr(Sub, "y")),
                *(str(inspect.signature(Sub)), str(inspect.signature(Own)), Sub.__match_args__),
                *([(each.name, each.type, each.repr, each.metadata) for each in made], Sub.__qualname__),
                *(hasattr(one, "__replace__"), pprint.pformat(Sub(1, [5] * 40))),
            ]
        )
        for wrong in (lambda: Sub(), lambda: Sub(1, x=2), lambda: Sub(1, [], None, 4), lambda: Sub(1, q=2)):
            with pytest.raises(TypeError, match=r"Sub\.__init__\(\)"):
                wrong()
    assert found[0] == found[1]


def test_the_repr_of_an_object_that_contains_itself() -> None:
    @record
    class Loop:
        inner: list[object]

    loop = Loop([])
    loop.inner.append(loop)
    assert repr(loop).endswith("Loop(inner=[...])")
    with pytest.raises(TypeError, match="unhashable"):
        hash(loop)


def test_unsupported_options_of_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="kw_only"):
        field(default=1, kw_only=True)


def test_inspecting_a_class_completes_it() -> None:
    @record
    class First:
        x: int = 5

    @record
    class Second:
        x: int = 5

    assert list(inspect.signature(First).parameters) == ["x"]
    assert dataclasses.is_dataclass(Second)
    assert Second().x == 5


def test_an_object_from_another_process_is_complete() -> None:
    data = pickle.dumps(Pair(1, [2]))
    program = (
        "import pickle, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        f"found = pickle.loads({data!r})\n"
        "import test_records\n"
        "assert found == test_records.Pair(1, [2]), found\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], check=True, env=path)


def test_threads_may_use_a_record_first_at_the_same_time() -> None:
    for _ in range(50):

        @record(frozen=True)
        class Shared:
            x: int

        made: list[object] = []
        start = threading.Barrier(4)

        def use(kind: type = Shared, made: list[object] = made, start: threading.Barrier = start) -> None:
            start.wait()
            made.append(kind(1))
            hash(made[-1])

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [Shared(1)] * 4


def test_records_are_complete_in_a_process_forked_while_threads_use_them() -> None:
    stop = threading.Event()

    def keep_making() -> None:
        while not stop.is_set():

            @record(frozen=True)
            class Made:
                x: int

            repr(Made(1))

    thread = threading.Thread(target=keep_making)
    thread.start()
    try:
        for _ in range(20):
            if (child := os.fork()) == 0:

                @record
                class Childs:
                    x: int

                os._exit(0 if repr(Childs(3)).endswith("Childs(x=3)") else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("first", [hash, repr, lambda one: one == one.value, dataclasses.fields])
def test_ctrl_c_while_a_class_is_completed_raises_keyboard_interrupt(first: Callable[[Any], object]) -> None:
    class Signals:
        armed = False

        def __set_name__(self, owner: type, name: str) -> None:
            if self.armed:
                signal.raise_signal(signal.SIGINT)

    signals = Signals()

    @record(frozen=True)
    class Late:
        value: object = signals

    signals.armed = True
    with pytest.raises(KeyboardInterrupt):
        first(Late())
    signals.armed = False
    first(Late())
    assert Late() == Late(signals)
    assert hash(Late()) == hash(Late(signals))
    assert repr(Late()) == repr(Late(signals))
