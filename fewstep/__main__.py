"""``python -m fewstep``: the command line."""

import sys

from fewstep.cli import main

if __name__ == "__main__":
    sys.exit(main())
