"""``python -m fm_mlx``: the command ``fm-mlx``."""

import sys

from fm_mlx.commands.cli import main

sys.exit(main())
