"""Reads LoRA adapters of PEFT, mlx-lm and llama.cpp, and applies them to a model."""
