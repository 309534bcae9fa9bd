"""`python -m seam.cli`: the command, where the package is not installed."""

import sys

from seam.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
