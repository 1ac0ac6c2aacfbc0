"""What the TRELLIS.2 plugin registers. Imports no torch."""
