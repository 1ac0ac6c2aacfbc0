"""Attention on packed sequences in Triton: forward, value and tangent, backward."""
