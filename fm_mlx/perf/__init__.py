"""What a model costs and how long it takes: bounds, measurements, checks of the kernels."""
