"""The driver of CUDA and its errors: none, too old, no GPU, no memory, a lost GPU, a fork.

A build with GEMLET_CUDA=emulated opens an emulated driver, which fails as GEMLET_EMULATED_GPU says
(csrc/kernels/cuda/emulated/driver.cpp)."""

from __future__ import annotations

import json

import pytest

import gemlet
from gemlet.base.sizes import size_text
from gemlet.cli import main
from support.devices import needs_cuda
from support.processes import run_program
from support.programs import cuda

pytestmark = needs_cuda


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"GEMLET_LIBCUDA": "/no/libcuda.so"}, r"this machine has no NVIDIA driver \(/no/libcuda\.so: .*\)"),
        (
            {"GEMLET_EMULATED_GPU": "version=12040"},
            r"the NVIDIA driver is too old: it is for CUDA 12\.4, and gemlet needs one for CUDA 13\.0 .*",
        ),
        ({"GEMLET_EMULATED_GPU": "gpus=0"}, r"the NVIDIA driver finds no GPU \(CUDA_VISIBLE_DEVICES .*\)"),
        ({"GEMLET_EMULATED_GPU": "init=100"}, r"the NVIDIA driver finds no GPU \(CUDA_VISIBLE_DEVICES .*\)"),
        (
            {"GEMLET_EMULATED_GPU": "init=803"},
            r"the NVIDIA driver does not start \(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH\)",
        ),
        (
            {"GEMLET_EMULATED_GPU": "capability=75"},
            r"no GPU of this machine can be used: of emulated GPU, its compute capability is 7\.5, and "
            r"gemlet needs 8\.0 or newer",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used(environment: dict[str, str], message: str) -> None:
    (name, said), automatic = run_program(cuda.load, environment=environment)
    assert name == "UnsupportedError"
    with pytest.raises(
        gemlet.UnsupportedError, match=rf"^device is 'cuda', but {message}; use device='cpu'$"
    ):
        raise gemlet.UnsupportedError(said)
    assert automatic == "cpu"


def test_auto_takes_the_gpu() -> None:
    assert run_program(cuda.load) == (("none", "None"), "cuda")


def test_memory_is_planned_and_refused() -> None:
    problem, total, process = run_program(cuda.inspect, None)
    assert problem is None
    assert process == 0
    less = {"GEMLET_EMULATED_GPU": f"memory={total - 1}"}
    problem, _, _ = run_program(cuda.inspect, None, environment=less)
    assert problem is not None
    assert problem.startswith("the free memory of the GPU is ")
    (name, said), _ = run_program(cuda.load, environment=less)
    assert (name, said) == ("MemoryLimitError", problem)
    problem, _, _ = run_program(cuda.inspect, "1MB")
    assert problem is not None
    assert problem.startswith("max_memory is 1 MB")


def test_a_failed_allocation_of_gpu_memory_is_named() -> None:
    name, said = run_program(cuda.allocate_too_much, environment={"GEMLET_EMULATED_GPU": "memory=100000"})
    assert name == "MemoryLimitError"
    with pytest.raises(
        gemlet.GemletError, match=r"^emulated GPU has \d+ of 100000 bytes of memory free, and \d+ are"
    ):
        raise gemlet.GemletError(said)


def test_a_lost_gpu() -> None:
    (name, said), (later, said_later) = run_program(
        cuda.lose, environment={"GEMLET_EMULATED_GPU": "lost_after=20"}
    )
    assert name == later == "DeviceError"
    for text in (said, said_later):
        assert text.startswith("emulated GPU failed while ")
        assert "(CUDA_ERROR_ILLEGAL_ADDRESS)" in text


def test_a_forked_process() -> None:
    _, said = run_program(cuda.fork)
    used, loaded, automatic = said.splitlines()
    assert used.startswith("UnsupportedError: a model on a GPU cannot be used in a forked process")
    assert loaded.startswith(
        "UnsupportedError: device is 'cuda', but this process was forked from one that had used"
    )
    assert automatic == "cpu"


def test_info_lists_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cuda     driver for CUDA 13.0; can be used" in lines
    assert f"gpu      emulated GPU, compute capability 9.0, {size_text(64 << 30)}" in lines
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cuda"]
    assert found["gpus"][0]["refusal"] is found["refusal"] is None
