"""Whether a student's latents are those that a pipeline decodes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep_trellis.flow import Flow
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.source import Folder, places
from fewstep_trellis.pipeline.spec import MESH, STRUCTURE_DECODER
from fewstep_trellis.weightfiles import tensor_file

DECODERS = {"ss": STRUCTURE_DECODER, "slat": MESH}


def compare_decoders(folder: Path, config: Mapping[str, Any], backbone: type[Flow], pipeline: Pipeline) -> None:
    """Warn if a student was distilled for another decoder than the pipeline's, such as one of ``fewstep teach``.

    Nothing is said where the run left the decoder at its default, or where one of the two is not on this machine.

    Args:
        folder: of the student.
        config: of its run.
    """
    defaults: Any = backbone.Config()
    own = Path(config.get("backbone", {}).get("decoder", ""))
    value = pipeline.spec.models.get(DECODERS[backbone.stage])
    if value is None or own == defaults.decoder or not tensor_file(own).is_file():
        return
    if not all(isinstance(place, Folder) for place, _ in places(pipeline.source, value)):
        return
    theirs = pipeline.stem(DECODERS[backbone.stage])
    if not tensor_file(own).samefile(tensor_file(theirs)):
        warnings.warn(
            f"student {folder} was distilled for the decoder {own}, but the pipeline decodes with {theirs}; unless "
            "both belong to the same autoencoder, nothing useful comes out. With its own decoder: fewstep sample "
            f"{folder} --image PICTURE",
            stacklevel=2,
        )
