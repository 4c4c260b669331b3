"""Broken kernels: a module for each Metal file, with the checks that find what is broken."""
