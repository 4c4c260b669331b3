"""What a model makes of long contexts, and what it recalls."""
