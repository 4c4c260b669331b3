"""Other people's tests and scripts: pytest's plugin, the runner, and how they tell."""
