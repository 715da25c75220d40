"""Compares llama.cpp with gemlet on the golden folders, which tests/support/gguf_package.py writes as GGUF
files.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0 .
    PYTHONPATH=tests python tests/golden/compare_llama_cpp.py          # all; or the names of some

For each folder, the script prints the distance between the logits or embeddings of the two on the same file.
It changes features that llama.cpp does not support: an attention scale that does not follow from the head
size, Gemma 4 without a cap on its logits or with scaled rotations, and dense layers whose number of outputs
is not the hidden size. llama.cpp supports one shape of Gemma 3n; a random model has this shape. It does not
support the order of gemma4-e4b's layers that share keys."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import NormalDist
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

import gemlet
from golden.folders import ALL_NAMES, EMBEDDING_NAMES, HERE, read_golden
from support.gguf_models import Tensors, read_folder
from support.gguf_package import MARKERS, write_with_package
from support.tiny_models import weights_of

GEMMA3N = "gemma3n, random"
WIDTH = 64
# llama.cpp cuts at the value below which 95 % of a normal distribution are. Its deviation divides by n - 1
# instead of n.
SPARSITY = NormalDist().cdf(NormalDist().inv_cdf(0.95) * (WIDTH / (WIDTH - 1)) ** 0.5)
CONFIG = {
    "model_type": "gemma3n_text",
    "activation_sparsity_pattern": [SPARSITY] * 10 + [0.0] * 12,
    "head_dim": 16,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": WIDTH,
    "laurel_rank": 64,
    "layer_types": ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(22)],
    "max_position_embeddings": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 22,
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "final_logit_softcapping": 30.0,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
}


def supported(name: str) -> tuple[dict[str, Any], Tensors, list[int]]:
    """The configuration, the tensors and a prompt that llama.cpp supports."""
    if name == GEMMA3N:
        tensors = {key: values + 0.5 * (values.ndim == 1) for key, values in weights_of(CONFIG).items()}
        for i in (20, 21):  # nothing reads them, but llama.cpp requires them
            for part in ("k_proj", "v_proj", "k_norm"):
                key = f"model.layers.{{}}.self_attn.{part}.weight"
                tensors[key.format(i)] = tensors[key.format(0)]
        return CONFIG, tensors, [2, *np.random.default_rng(0).integers(6, 64, 30).tolist()]
    config, tensors = read_folder(HERE / name)
    text = config.get("text_config", config)
    if "gemma2" in name or "gemma3-" in name:
        text["query_pre_attn_scalar"] = text["head_dim"]
    if "gemma4" in name and "rope_parameters" in text:
        text["rope_parameters"]["full_attention"].pop("factor", None)
        text["final_logit_softcapping"] = 30.0
    for key in [key for key in tensors if key.startswith("3_Dense")]:
        tensors[key] = np.resize(tensors[key], (text["hidden_size"], tensors[key].shape[1]))
    ids = read_golden(name)["ids"]
    if name in EMBEDDING_NAMES:  # llama.cpp takes only text for embeddings
        ids = np.append(2, ids[ids >= len(MARKERS)])
    return config, tensors, ids.tolist()


def of_llama_cpp(path: Path, ids: list[int], *, embeds: bool) -> NDArray[np.float32]:
    kind = llama_cpp.LLAMA_POOLING_TYPE_MEAN if embeds else llama_cpp.LLAMA_POOLING_TYPE_NONE
    model = llama_cpp.Llama(
        str(path),
        n_ctx=1024,
        n_batch=1024,
        n_ubatch=1024,
        n_threads=1,
        embedding=embeds,
        pooling_type=kind,
        logits_all=not embeds,
        verbose=False,
        type_k=0,
        type_v=0,
    )
    if embeds:
        text = "".join(chr(0x4E00 + i - len(MARKERS)) for i in ids[1:])
        assert model.tokenize(text.encode()) == ids
        return np.float32(model.embed(text, normalize=True))
    model.eval(ids)
    return np.array(model._scores)[: len(ids)]


def compare(name: str) -> None:
    config, tensors, ids = supported(name)
    with tempfile.TemporaryDirectory() as folder:
        path = write_with_package(config, tensors, Path(folder) / "model.gguf")
        with gemlet.load(path, weights="f32", threads=1) as model:
            ours = model.embed([ids])[0] if name in EMBEDDING_NAMES else model.logits(ids)
        theirs = of_llama_cpp(path, ids, embeds=name in EMBEDDING_NAMES)
    error = np.abs(ours - theirs).max() / np.abs(ours).max()
    same = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    print(f"{name}: {error:.1e} of the largest value, the same index of it in {same:.1%} of the rows")


def main() -> None:
    if len(sys.argv) == 2:
        return compare(sys.argv[1])
    without = ("vaultgemma", "gemma4-e4b")
    known = [name for name in ALL_NAMES if name not in without and not name.startswith("gemma3n")]
    # Each folder gets its own process, because llama.cpp may end the process.
    for name in sys.argv[1:] or [*known, GEMMA3N, *EMBEDDING_NAMES]:
        run = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
        lines = (run.stderr if run.returncode else run.stdout).strip().splitlines()
        print(lines[-1] if not run.returncode else f"{name}: ends with {run.returncode}: {lines[-1:]}")


if __name__ == "__main__":
    main()
