"""The program that ``support.processes.command_of`` starts: it calls one function of this folder."""

from __future__ import annotations

import base64
import pickle
import sys


def main() -> None:
    # Unpickling the function imports its module.
    program, arguments, result = pickle.loads(base64.b64decode(sys.argv[1]))
    returned = program(*arguments)
    if result is not None:
        result.write_bytes(pickle.dumps(returned))


if __name__ == "__main__":
    main()
