"""Launches: memory, the runtime, the order of threads, and what is found around them."""
