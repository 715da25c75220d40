"""Writes rope.safetensors: results of transformers' rotary embeddings at far positions.

    python tests/golden/make_rope.py        # in the environment of make_goldens.py

For each case of rope_cases.py, with R the number of positions and h the head dim:

    positions [R] int64             the same for all cases
    {case}.frequencies [h/2]        angle per position
    {case}.cos, {case}.sin [R, h/2]
    {case}.query [h]                a random head
    {case}.rotated [R, h]           that head at each position

A golden model with 100,000 tokens would show the same, but its file would be much larger.
"""

from __future__ import annotations

import importlib
import os
import sys
import zlib
from pathlib import Path

# PyTorch's vector instructions round some powers to the neighbouring float. At position 100,000 this changes
# the angle by 2e-3. PyTorch's plain code rounds correctly and gives the same frequencies on every processor.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden.rope_cases import POSITIONS, ROPE_CASES, RopeCase  # noqa: E402

ROTARY = {
    "GemmaConfig": ("gemma", "GemmaRotaryEmbedding"),
    "Gemma3TextConfig": ("gemma3", "Gemma3RotaryEmbedding"),
    "Gemma3nTextConfig": ("gemma3n", "Gemma3nRotaryEmbedding"),
    "Gemma4TextConfig": ("gemma4", "Gemma4TextRotaryEmbedding"),
}


def run(case: RopeCase) -> dict[str, torch.Tensor]:
    family, rotary_class = ROTARY[case.config_class]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    rotary = getattr(module, rotary_class)(getattr(transformers, case.config_class)(**case.config))
    by_kind = () if family == "gemma" else (case.kind,)
    prefix = "" if family == "gemma" else f"{case.kind}_"
    positions = torch.tensor(POSITIONS)
    torch.manual_seed(zlib.crc32(case.name.encode()))
    query = torch.randn(case.head_dim)
    cos, sin = rotary(query, positions[None], *by_kind)  # [1, R, h]; both halves of the lanes are equal
    spread = query.expand(1, 1, len(positions), -1)  # [1, heads, R, h]
    if family in ("gemma", "gemma3"):
        rotated, _ = module.apply_rotary_pos_emb(spread, spread, cos, sin)
    else:
        rotated = module.apply_rotary_pos_emb(spread, cos, sin)
    half = case.head_dim // 2
    assert cos.shape[-1] == case.head_dim
    assert torch.equal(cos[..., :half], cos[..., half:])
    return {
        f"{case.name}.frequencies": getattr(rotary, f"{prefix}inv_freq"),
        f"{case.name}.cos": cos[0, :, :half],
        f"{case.name}.sin": sin[0, :, :half],
        f"{case.name}.query": query,
        f"{case.name}.rotated": rotated[0, 0],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    tensors = {"positions": torch.tensor(POSITIONS)}
    for one in ROPE_CASES:
        tensors |= run(one)
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, HERE / "rope.safetensors"
    )
