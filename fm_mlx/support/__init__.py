"""Helpers that know nothing of models: files, tables, random numbers, the C allocator."""
