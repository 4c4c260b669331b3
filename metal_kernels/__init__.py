"""Metal kernels of the recurrence, what launches them, and a simulator that executes them."""
