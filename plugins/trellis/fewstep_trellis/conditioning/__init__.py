"""What a generation is conditioned on: pictures and texts, prepared and encoded."""

from fewstep_shapes3d.pictures.loading import load_picture, needs_background_removal
from fewstep_shapes3d.pictures.preprocess import dataset_preparation, prepare

from fewstep_trellis.conditioning.factory import image_conditioner, text_conditioner
from fewstep_trellis.conditioning.protocol import ImageConditioner, TextConditioner
from fewstep_trellis.conditioning.several import several_condition, several_field

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
