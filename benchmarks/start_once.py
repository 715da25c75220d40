"""Starts a model once and prints the times of the parts of the start as JSON. start.py runs this file in new
processes.

The arguments are a packed folder and the number of tokens that the context has room for.
"""

import json
import sys
import time

marks = [("interpreter", time.process_time(), time.monotonic())]


def mark(name: str) -> None:
    marks.append((name, time.process_time(), time.monotonic()))


import gemlet  # noqa: E402

mark("import gemlet")
gemlet.load  # noqa: B018
mark("gemlet.load")
model = gemlet.load(sys.argv[1], max_context=int(sys.argv[2]))
mark("load()")
stream = model.stream("The", max_tokens=1, temperature=0)
mark("stream()")
next(stream)
mark("first token")
print(json.dumps([marks, len(sys.modules), "numpy" in sys.modules]))
