"""`python -m mmjax` is the `mmjax` command."""

import sys

from mmjax.cli.main import main

sys.argv[0] = "mmjax"  # what a run folder keeps as its command
sys.exit(main())
