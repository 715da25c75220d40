"""LoRA adapters of PEFT, mlx-lm and llama.cpp."""
