"""The tiny embedding models of tests/golden, as data; see variants.py."""

from __future__ import annotations

from typing import Any

from .variants import FAR_ROWS, LOCAL, SIX, Variant, gemma3_layer_types


def embeddinggemma(layers: list[str], **changes: Any) -> dict[str, Any]:
    config = gemma3_layer_types(layers, **changes)
    return config | {
        "architectures": ["Gemma3TextModel"],
        "eos_token_id": 1,
        "max_position_embeddings": 2048,
        "transformers_version": "4.57.0.dev0",
        "use_bidirectional_attention": True,
    }


EMBEDDING = (
    Variant(
        "embeddinggemma",
        "as published: 6 tokens to either side in local layers, two dense layers behind the mean, no prefix",
        embeddinggemma([*SIX, LOCAL], sliding_window=12),
        dense=(88, 40),
    ),
    Variant(
        "embeddinggemma-far",
        "700 tokens, 32 to either side; written by transformers 5; no dense layers",
        embeddinggemma(
            SIX,
            head_dim=16,
            hidden_size=24,
            intermediate_size=28,
            num_attention_heads=2,
            query_pre_attn_scalar=16,
            sliding_window=64,
            vocab_size=127,
        ),
        tokens=700,
        rows=FAR_ROWS,
        resave=True,
        dense=(),
    ),
)
