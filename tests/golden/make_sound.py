"""Writes sound.safetensors: the features of the official extractors, and sounds that soxr has resampled.

pip install transformers==5.24.0 soxr==1.1.0 safetensors
python tests/golden/make_sound.py

wave.{n} [n]                    a sound at 16 kHz
gemma3n.{n}, gemma4.{n}         its features, [frames, 128]
gemma3n.{n}.valid, ...          how many frames count, [1]
rate.{r} [samples, channels]    a sound at another rate: tones in its middle, silence around them
resampled.{r}                   what transformers' load_audio makes of its file"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr
from safetensors.numpy import save_file
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

LENGTHS = (161, 640, 3217)
RATES = {8000: 1, 11025: 1, 22050: 2, 44100: 2, 48000: 3}  # rate -> channels


def main() -> None:
    random = np.random.default_rng(20261130)
    extractors = {"gemma3n": Gemma3nAudioFeatureExtractor(), "gemma4": Gemma4AudioFeatureExtractor()}
    tensors = {}
    for length in LENGTHS:
        time = np.arange(length) / 16000
        wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * random.standard_normal(length)
        tensors[f"wave.{length}"] = wave = wave.astype(np.float32)
        for name, extractor in extractors.items():
            found = extractor([wave], return_tensors="np")
            tensors[f"{name}.{length}"] = found["input_features"][0]
            tensors[f"{name}.{length}.valid"] = found["input_features_mask"][0].sum()[None].astype(np.int64)
    for rate, channels in RATES.items():
        time = np.arange(rate // 5 + 7)[:, None] / rate
        tones = sum(np.sin(2 * np.pi * pitch * time + pitch) for pitch in (100, 440, 1000, 2500, 3300))
        wave = tones * np.linspace(0.05, 0.15, channels) * np.sin(np.pi * time / time[-1]) ** 4
        tensors[f"rate.{rate}"] = wave = wave.astype(np.float32)
        mono = wave.mean(axis=1)
        length = -(-len(mono) * 16000 // rate)
        made = soxr.resample(mono, rate, 16000, quality="soxr_hq")[:length]
        tensors[f"resampled.{rate}"] = np.pad(made, (0, length - len(made)))
    save_file(tensors, Path(__file__).with_name("sound.safetensors"))


if __name__ == "__main__":
    main()
