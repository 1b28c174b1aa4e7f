"""`python -m apportion`: the command line."""

import sys

from apportion.search.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
