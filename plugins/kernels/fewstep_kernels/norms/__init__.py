"""Norms, modulation and gates in Triton, one pass over memory each."""
