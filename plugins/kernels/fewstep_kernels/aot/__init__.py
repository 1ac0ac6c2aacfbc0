"""Compiling every shipped tile ahead of time, without a GPU, and reading what came out."""
