"""The steps of the scheduler in simulated time: short prompts and a long one do not have to wait for each
other."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Iterable

import pytest

from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.inside import testing

Asked = tuple[float, int, int]  # time of arrival, tokens of the prompt, tokens to write
WRITERS: list[Asked] = [(0.0, 32, 10**4)] * 8
LONG, LONG_PROMPT = 8, 4096  # the number of the long request


def seconds_of(rows: int) -> float:
    """About a 1B model in q4 on two cores."""
    return 0.0156 + 0.0013 * rows


def seconds_of_a_fast_chip(rows: int) -> float:
    """If memory takes more of the time, a step with 8 texts reads 65 tokens of a prompt."""
    return 0.040 + 0.0007 * rows


def seconds_of_tiles(rows: int) -> float:
    """A 1B model in q4 on two cores with AMX, as measured: a tile costs about the same for few rows and for
    many."""
    sizes = [(1, 0.025), (16, 0.048), (17, 0.066), (33, 0.081), (64, 0.089), (128, 0.129), (512, 0.399)]
    for (less, shorter), (more, longer) in itertools.pairwise(sizes):
        if rows <= more:
            return shorter + (longer - shorter) * (rows - less) / (more - less)
    raise AssertionError(rows)


@pytest.fixture(scope="module")
def core() -> _core.Model:
    return random_core(model_config(layer_config(sliding_window=0), max_context=12_000))


class Steps:
    def __init__(self, core: _core.Model, requests: list[Asked], seconds_of: object = seconds_of) -> None:
        self.requests = requests
        self.seconds_of = seconds_of
        self.steps = testing.plan_steps(core, requests, seconds_of)

    def of(self, number: int) -> list[int]:
        """The steps that prefill the prompt."""
        left, found = self.requests[number][1], []
        for step, (_, parts) in enumerate(self.steps):
            tokens = dict(parts).get(number, 0)
            if tokens and left > 0:
                found.append(step)
            left -= tokens
        assert found
        return found

    def first(self, number: int) -> float:
        """Seconds from the arrival to the first token."""
        return self.steps[self.of(number)[-1]][0] - self.requests[number][0]


def beside_a_long_one(short: int, arrivals: Iterable[float]) -> list[Asked]:
    return [*WRITERS, (3.0, LONG_PROMPT, 1), *((when, short, 1) for when in arrivals)]


@pytest.mark.parametrize(("short", "median", "most"), [(8, 2.4, 3.4), (32, 1.7, 2.1), (64, 2.0, 3.2)])
def test_a_short_prompt_beside_a_long_one(core: _core.Model, short: int, median: float, most: float) -> None:
    """The time to the first token of a request that comes at any moment of a step, divided by its time on an
    idle engine."""
    pick, times = random.Random(short), []
    alone = len(Steps(core, beside_a_long_one(short, ())).of(LONG))
    for _ in range(6):
        requests = beside_a_long_one(short, [3.5 + i + pick.random() for i in range(8)])
        steps = Steps(core, requests)
        times += [steps.first(number) / seconds_of(short) for number in range(LONG + 1, len(requests))]
        # Most short prompts shared a step with pieces of the long one, or had steps that are not longer.
        assert len(steps.of(LONG)) - alone <= 4
    assert statistics.median(times) < median
    assert max(times) < most


def test_a_single_short_prompt_gets_a_step_of_its_own(core: _core.Model) -> None:
    """If a single short prompt comes, it gets a step without a piece of the long one, however large it is."""
    requests = beside_a_long_one(8, [3.5, 6.0])
    steps = Steps(core, requests, seconds_of_a_fast_chip)
    reading = [dict(steps.steps[i][1]).get(LONG, 0) for i in steps.of(LONG)]
    assert statistics.median(reading) > 40
    for number in (LONG + 1, LONG + 2):
        (step,) = steps.of(number)
        assert LONG not in dict(steps.steps[step][1])


@pytest.mark.parametrize("seconds_of", [seconds_of, seconds_of_a_fast_chip])
def test_short_prompts_do_not_stop_a_long_one(core: _core.Model, seconds_of: object) -> None:
    """A stream of short prompts keeps the long prompt out of at most three steps in a row."""
    requests = beside_a_long_one(20, [3.0 + 0.02 * i for i in range(1500)])
    reading = Steps(core, requests, seconds_of).of(LONG)
    assert max(b - a for a, b in itertools.pairwise(reading)) <= 4


def test_only_one_in_16_steps_leaves_out_the_long_prompt(core: _core.Model) -> None:
    """One in 16 steps ends a short prompt without the piece of the long one that it could read."""
    requests = beside_a_long_one(20, [3.0 + 0.1 * i for i in range(300)])
    steps = Steps(core, requests, seconds_of_a_fast_chip)
    reading = steps.of(LONG)
    quick = set(range(reading[0], reading[-1])) - set(reading)
    quick = {i for i in quick if sum(n for number, n in steps.steps[i][1] if number > LONG) <= 40}
    assert 0 < len(quick) <= (reading[-1] - reading[0]) / 16 + 1


def test_an_idle_engine_reads_as_much_as_a_step_can_hold(core: _core.Model) -> None:
    steps = testing.plan_steps(core, [(0.0, 1300, 2), (0.5, 10, 1)], seconds_of)
    assert [parts for _, parts in steps[:3]] == [[(0, 512)], [(1, 10), (0, 502)], [(0, 286)]]


def test_prompts_that_come_together(core: _core.Model) -> None:
    """The first one is read alone, since it came first. The others are not read one a step, which took 0.70
    seconds."""
    steps = Steps(core, [(0.0001 * i, 32, 32) for i in range(16)], seconds_of_tiles)
    assert statistics.mean(steps.first(number) for number in range(16)) < 0.6
    times = [0.0, *(when for when, _ in steps.steps)]
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.1


def test_wrong_requests(core: _core.Model) -> None:
    with pytest.raises(ValueError, match="1 token or more"):
        testing.plan_steps(core, [(0.0, 0, 1)], seconds_of)
