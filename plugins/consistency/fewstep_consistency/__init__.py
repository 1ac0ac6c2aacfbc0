"""Consistency models and phased consistency models, distilled or trained, from the core's one residual."""
