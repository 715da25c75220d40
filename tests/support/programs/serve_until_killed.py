"""A server with the keys of a file, which prints its port when it is ready and runs until it is killed."""

from __future__ import annotations

import sys
import threading

from gemlet.server.settings import Settings
from support.servers import serving


def main() -> None:
    with serving(Settings(keys=sys.argv[1])) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
