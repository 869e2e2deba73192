"""`python -m npgemma`."""

import sys

from npgemma.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
