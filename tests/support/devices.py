"""The marker for tests that need ``device="cuda"``."""

from __future__ import annotations

import pytest

from gemlet import _core

__all__ = ["needs_cuda"]

needs_cuda = pytest.mark.skipif(
    _core.cuda_info()["refusal"] is not None, reason="this build or this machine has no device 'cuda'"
)
