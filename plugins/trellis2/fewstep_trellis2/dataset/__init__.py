"""Data sets in TRELLIS.2's own layout."""
