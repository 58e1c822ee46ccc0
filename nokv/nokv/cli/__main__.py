"""`python -m nokv.cli`."""

import sys

from nokv.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
