"""Reads files of tensors: safetensors and GGUF."""
