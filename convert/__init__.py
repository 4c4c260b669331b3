"""From PyTorch checkpoints to MLX and back, with proof that the model is the same."""
