"""The pictures of a job, opened and checked before any weights are read."""

from __future__ import annotations

from typing import Any

from fewstep_shapes3d.pictures.background import can_remove, not_installed
from fewstep_shapes3d.pictures.loading import black_border, load_picture, needs_background_removal
from fewstep_shapes3d.pictures.preprocess import object_box

from fewstep_trellis.conditioning.factory import NANO
from fewstep_trellis.generate.inputs import Job
from fewstep_trellis.pipeline.request import about_one


def opened(job: Job, background: str, encoder: str) -> list[Any]:
    """The pictures of a job as RGBA, checked as far as that goes without the encoder.

    Args:
        job: with pictures.
        background: "remove" or "keep".
        encoder: its name; the nano models' takes a picture on black as it is.

    Raises:
        Unusable: one that cannot be decoded, shows no object, or whose background has to be removed and cannot be.
    """
    with about_one():
        found = [load_picture(one, name) for name, one in zip(job.names, job.pictures, strict=True)]
        for name, picture in zip(job.names, found, strict=True):
            if not needs_background_removal(picture):
                object_box(picture, name)
            elif background == "remove" and not can_remove() and not (encoder == NANO and black_border(picture)):
                raise not_installed(name)
        return found
