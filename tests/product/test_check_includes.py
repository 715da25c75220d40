"""Tests that the check of the C++ core's includes refuses each kind of fault that it looks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT

SCRIPT = ROOT / ".ci/check_includes.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="a source distribution has no .ci")


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_includes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def problems(check: ModuleType, root: Path, files: dict[str, str]) -> list[str]:
    """The errors that the check finds in a folder csrc/ with these files. ``files`` maps the name of each
    file to the headers that the file includes."""
    for name, headers in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"#include {header}\n" if "<" in header else f'#include "{header}"\n'
            for header in headers.split()
        ]
        path.write_text("".join(lines))
    found: list[str] = check.problems(check.Sources(root))
    return found


GOOD = {
    "base/error.h": "<string>",
    "formats/layout.h": "<stdint.h>",
    "kernels/matmul/matmul.h": "formats/layout.h",
    "kernels/matmul/avx2.cpp": "kernels/matmul/matmul.h <immintrin.h>",
    "kernels/cuda/matmul.cu": "kernels/cuda/matmul.h <cuda_bf16.h> <cub/cub.cuh>",
    "kernels/cuda/matmul.h": "formats/layout.h <cuda_runtime.h>",
    "backend/backend.h": "base/error.h",
    "backend/cuda/cuda_backend.cpp": "backend/cuda/cuda_backend.h kernels/cuda/matmul.h <cublas_v2.h>",
    "backend/cuda/cuda_backend.h": "backend/backend.h <memory>",
    "backend/devices.cpp": "backend/cuda/cuda_backend.h <sys/mman.h>",
    "model/model.h": "backend/backend.h",
    "model/model.cpp": "model/model.h",
    "vision/tower.cpp": "model/model.h",
    "vision/tower.h": "backend/backend.h",
    "audio/mel.h": "model/model.h",
    "engine/engine.cpp": "vision/tower.h audio/mel.h",
    "bindings/module.cpp": "engine/engine.h <pybind11/pybind11.h>",
    "engine/engine.h": "",
}


def test_this_project_passes(check: ModuleType) -> None:
    assert check.problems(check.Sources(check.CSRC)) == []


def test_allowed_includes_pass(check: ModuleType, tmp_path: Path) -> None:
    assert problems(check, tmp_path, GOOD) == []


CUDA = "kernels/cuda/ and backend/cuda/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"base/error.h": "formats/layout.h"},
            'base/error.h: base may not include "formats/layout.h" of formats',
        ),
        (
            {"model/a.h": "kernels/matmul/matmul.h"},
            'model/a.h: model may not include "kernels/matmul/matmul.h" of kernels',
        ),
        ({"model/a.cpp": "vision/tower.h"}, 'model/a.cpp: model may not include "vision/tower.h" of vision'),
        ({"vision/a.cpp": "audio/mel.h"}, 'vision/a.cpp: vision may not include "audio/mel.h" of audio'),
        ({"audio/a.cpp": "vision/tower.h"}, 'audio/a.cpp: audio may not include "vision/tower.h" of vision'),
        (
            {"audio/a.cpp": "engine/engine.h"},
            'audio/a.cpp: audio may not include "engine/engine.h" of engine',
        ),
        ({"model/a.cpp": "model.h"}, 'model/a.cpp: "model.h" is not a header of csrc/, named from there'),
        (
            {"model/a.cpp": "model/none.h"},
            'model/a.cpp: "model/none.h" is not a header of csrc/, named from there',
        ),
        ({"model/a.cpp": "<pybind11/numpy.h>"}, "model/a.cpp: <pybind11/numpy.h> belongs in bindings/ only"),
        ({"model/a.cpp": "<boost/any.hpp>"}, "model/a.cpp: <boost/any.hpp> belongs in no room only"),
        ({"model/a.cpp": "<cuda_runtime.h>"}, f"model/a.cpp: <cuda_runtime.h> belongs in {CUDA} only"),
        ({"bindings/a.cpp": "<nvrtc.h>"}, f"bindings/a.cpp: <nvrtc.h> belongs in {CUDA} only"),
        ({"model/a.cu": ""}, f"model/a.cu: CUDA belongs in {CUDA} only"),
        ({"backend/a.cuh": ""}, f"backend/a.cuh: CUDA belongs in {CUDA} only"),
        (
            {"backend/a.h": "kernels/cuda/matmul.h"},
            f'backend/a.h: "kernels/cuda/matmul.h" includes CUDA, which only {CUDA} may',
        ),
        (
            {"kernels/matmul/avx2.cpp": "base/error.h"},
            "kernels/matmul/avx2.cpp: an instruction-set file may not include base/error.h",
        ),
        ({"loose.h": ""}, "loose.h: not in a room"),
    ],
)
def test_each_kind_of_wrong_include_is_refused(
    check: ModuleType, tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    found = problems(check, tmp_path, GOOD | files)
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model/a.h": "model/b.h", "model/b.h": "model/a.h"}, "model/a -> model/b -> model/a"),
        (
            {"model/a.h": "model/b.h", "model/b.h": "", "model/b.cpp": "model/c.h", "model/c.h": "model/a.h"},
            "model/a -> model/b -> model/c -> model/a",
        ),
    ],
    ids=["two headers", "through a source file"],
)
def test_a_circle_of_includes_is_refused(
    check: ModuleType, tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    assert problems(check, tmp_path, GOOD | files) == [f"units include each other in a circle: {expected}"]
