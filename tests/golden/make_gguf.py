"""Writes gguf/: a golden folder as the ``gguf`` package writes models, split into three files.

    pip install gguf==0.19.0 safetensors
    python tests/golden/make_gguf.py

Weights are those of the folder in float32, so its golden.safetensors says what the model computes. The
tokenizer is a made-up one of the vocabulary's size.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from safetensors.numpy import load_file

HERE = Path(__file__).parent
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_metadata(writer: GGUFWriter, config: dict[str, object]) -> None:
    writer.add_name("golden")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_file_type(0)
    size = config["vocab_size"]
    markers = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN] + [TokenType.CONTROL] * 2
    pieces = [chr(0x4E00 + i) for i in range(size - len(markers))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*markers, *pieces])
    writer.add_token_scores([0.0] * len(markers) + [-float(i) for i in range(len(pieces))])
    writer.add_token_types([*kinds, *([TokenType.NORMAL] * len(pieces))])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{{ bos_token }}<start_of_turn>user")


def main() -> None:
    folder = HERE / "gemma3-1b"
    config = json.loads((folder / "config.json").read_text())
    (HERE / "gguf").mkdir(exist_ok=True)
    writer = GGUFWriter(HERE / "gguf" / "gemma3-1b.gguf", "gemma3", split_max_tensors=40)
    write_metadata(writer, config)
    for tensor, values in load_file(folder / "model.safetensors").items():
        path = tensor.removeprefix("model.").removesuffix(".weight")
        if path.startswith("layers."):
            _, index, rest = path.split(".", 2)
            name = f"blk.{index}.{NAMES[rest]}.weight"
        else:
            name = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight"}[path]
        writer.add_tensor(name, values.astype(np.float32) + np.float32(values.ndim == 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
