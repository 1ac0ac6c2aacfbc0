"""What a generation is conditioned on: pictures and texts, prepared and encoded."""

from .factory import image_conditioner, text_conditioner
from .pictures import load_picture, needs_background_removal
from .preprocess import dataset_preparation, prepare
from .protocol import ImageConditioner, TextConditioner
from .several import several_condition, several_field

__all__ = [
    "ImageConditioner",
    "TextConditioner",
    "dataset_preparation",
    "image_conditioner",
    "load_picture",
    "needs_background_removal",
    "prepare",
    "several_condition",
    "several_field",
    "text_conditioner",
]
