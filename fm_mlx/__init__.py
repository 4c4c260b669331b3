from fm_mlx.model import Model, ModelArgs
