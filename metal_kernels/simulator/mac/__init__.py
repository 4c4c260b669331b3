"""The Mac that is pretended: devices, transforms, and what MLX makes of a call."""
