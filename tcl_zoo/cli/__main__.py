"""``python -m tcl_zoo.cli``."""

import sys

from . import main

sys.exit(main())
