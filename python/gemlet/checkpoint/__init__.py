"""Files of tensors: safetensors and GGUF."""
