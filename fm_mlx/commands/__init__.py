"""The subcommands of ``fm-mlx``: options and output; the work is done elsewhere."""
