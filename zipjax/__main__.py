"""``python -m zipjax``: see :mod:`zipjax.command`."""

import sys

from zipjax.command.main import main

if __name__ == "__main__":
    sys.exit(main())
