"""``python -m gemlet`` is the ``gemlet`` command."""

import sys

from gemlet.cli import main

if __name__ == "__main__":
    sys.exit(main())
