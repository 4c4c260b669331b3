"""``python -m fm_mlx``: the command ``fm-mlx``."""

import sys

from fm_mlx.cli import main

sys.exit(main())
