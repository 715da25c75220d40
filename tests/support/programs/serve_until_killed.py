"""A server with a file of keys ("" means no keys) and perhaps a folder for files. It prints its port when it
is ready, and runs until it is killed."""

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
