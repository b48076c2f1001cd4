"""``python -m tcl_zoo``: the command ``tcl-zoo``."""

import sys

from .cli import main

sys.exit(main())
