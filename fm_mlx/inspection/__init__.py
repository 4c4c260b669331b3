"""What a model does with a prompt, row by row."""
