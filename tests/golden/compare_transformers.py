"""Compares gemlet with transformers on a real model: trained weights, float32, and held-out text.

    pip install torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate .
    python tests/golden/compare_transformers.py gemma-3-270m.gguf

MODEL is a GGUF file. transformers turns its weights into float32 and computes with the official
implementation; gemlet does the same with weights="f32". The script prints how far the logits differ, on
chunks of 512 tokens of tests/data/heldout.txt, and whether greedy text is equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

import gemlet

TEXT = Path(__file__).resolve().parent.parent / "data" / "heldout.txt"
CHUNK, CHUNKS, GREEDY = 512, 2, 64
ROWS = 64  # so many rows of logits are compared at a time
PROMPT = "Once upon a time, a small fox set out to see the sea."


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def compare(
    official: NDArray[np.float32], ours: NDArray[np.float32], following: NDArray[np.int64]
) -> dict[str, list[float]]:
    """By row: the KL divergence, whether the likeliest token is the same, and both losses."""
    p, q = log_probabilities(official), log_probabilities(ours)
    rows = np.arange(len(following))
    return {
        "divergence": (np.exp(p) * (p - q)).sum(axis=-1).tolist(),
        "same": (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist(),
        "official loss": (-p[rows, following]).tolist(),
        "loss": (-q[rows, following]).tolist(),
    }


def main() -> None:
    path = Path(sys.argv[1])
    official = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with gemlet.load(path, weights="f32") as model, torch.no_grad():
        assert model.tokenizer is not None
        bos, *ids = model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
        found: dict[str, list[float]] = {}
        for number in range(CHUNKS):
            start = number * len(ids) // CHUNKS
            chunk = np.array([bos, *ids[start : start + CHUNK - 1]])
            logits = official(input_ids=torch.tensor(chunk)[None], use_cache=False).logits[0].numpy()
            ours = model.logits(chunk)
            error = np.abs(logits - ours).max() / np.abs(logits).max()
            found.setdefault("error", []).append(float(error))
            for at in range(0, CHUNK, ROWS):
                block = slice(at, at + ROWS)
                for name, values in compare(logits[block], ours[block], chunk[1:][block]).items():
                    found.setdefault(name, []).extend(values)
        prompt = model.tokenizer.encode(PROMPT)
        written = official.generate(torch.tensor([prompt]), max_new_tokens=GREEDY, do_sample=False)
        greedy = model.generate(prompt, max_tokens=GREEDY, temperature=0).token_ids
    print(f"{CHUNKS * CHUNK} tokens of {TEXT.name}")
    print(f"largest difference of a logit, relative to the largest logit: {max(found['error']):.1e}")
    print(f"KL divergence: {np.mean(found['divergence']):.1e} nats")
    print(f"same likeliest token: {np.mean(found['same']):.2%}")
    perplexities = (np.exp(np.mean(found[name])) for name in ("official loss", "loss"))
    print("perplexity: transformers {:.4f}, gemlet {:.4f}".format(*perplexities))
    equal = greedy == written[0, len(prompt) :].tolist()
    print(f"greedy text of {len(greedy)} tokens: {'equal' if equal else 'different'}")


if __name__ == "__main__":
    main()
