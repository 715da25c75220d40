"""A server that prints its port when it is ready, and runs until a test kills it. The first argument is the
file of keys ("" for none), and the optional second argument is the folder for files."""

from __future__ import annotations

import sys
import threading

from gemlet.server.settings import Settings
from support.servers import serving


def main() -> None:
    keys, data = sys.argv[1] or None, sys.argv[2] if len(sys.argv) > 2 else None
    with serving(Settings(keys=keys, data=data)) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
