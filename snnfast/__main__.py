"""``python -m snnfast``: the same as the command ``snnfast``."""

import sys

from snnfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
