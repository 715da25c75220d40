"""A process that generates texts with a prefix cache on disk until a test kills it."""

import sys
from itertools import count

import numpy as np

from gemlet import _core
from support.core_models import layer_config, model_config, random_core
from support.engine_reader import Reader

ids = np.random.default_rng(4).integers(0, 96, 4000).astype(np.int32)
layers = layer_config(sliding_window=100), layer_config(sliding_window=0)
core = random_core(model_config(*layers, max_context=1400))
engine = _core.Engine(
    core,
    prefix_cache_bytes=1 << 16,
    prefix_cache_folder=sys.argv[1],
    prefix_cache_folder_bytes=1 << 22,
    model_digest=bytes(range(32)),
)
reader = Reader(engine)
for number in count():
    start = number % 7 * 400
    reader.read(reader.submit(ids[start : start + 700], seed=number))
    print(number, flush=True)
