"""Condition pictures: reading them, removing the background, cropping to the object."""
