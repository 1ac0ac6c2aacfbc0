"""TRELLIS's own dataset layout: ``metadata.csv``, latents by object, condition pictures."""
