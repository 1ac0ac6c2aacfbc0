"""Consistency-type methods of one time, distilled or trained, from the core's one residual."""
