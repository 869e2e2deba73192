"""`python -m npgemma`: the same as the console script."""

import sys

from npgemma.cli import main

if __name__ == "__main__":
    sys.exit(main())
