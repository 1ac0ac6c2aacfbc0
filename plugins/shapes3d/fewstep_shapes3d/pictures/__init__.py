"""The pictures that a model is conditioned on: reading, removing the background, cropping to the object."""
