"""Weights without constructor arguments, such as the released MDT-dist students: their stage and their network."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.flow import Flow
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.weightfiles import read_tensors, split_key, tensor_file
from fewstep_trellis.weights import fit, misfits, select


def stage_of_file(path: Path, pipeline: Pipeline) -> str:
    """The stage whose flow has these keys and shapes: a released student has its teacher's architecture.

    Raises:
        FewstepError: an unreadable file; keys of neither flow (what is missing, unknown and wrongly shaped for each) or
            of both.
    """
    file, key = split_key(path)
    state = read_tensors(tensor_file(file), key)
    refused: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # load_released warns of a removed prefix
        for stage in STAGES:
            network = _empty(stage, pipeline)
            own = network.state_dict()
            if wrong := misfits(own, select(state, own, str(file))):
                refused[stage] = f"does not fit {type(network).__name__}: {'; '.join(wrong)}"
    fitting = [stage for stage in STAGES if stage not in refused]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise FewstepError(
            f"--student {str(path)!r}: fits both flows of {pipeline.name}; accepted: one with its json file"
        )
    raise FewstepError(f"--student {str(path)!r}: fits no flow of {pipeline.name}: {'; '.join(refused.values())}")


def load_released(path: Path, stage: str, pipeline: Pipeline) -> Flow:
    """The file's weights in a network like the pipeline's own flow of this stage. A removed prefix is a warning."""
    model, (file, key) = _empty(stage, pipeline), split_key(path)
    fit(model, read_tensors(tensor_file(file), key), str(file))
    return pipeline.as_flow(stage, model).eval().requires_grad_(False)


def _empty(stage: str, pipeline: Pipeline) -> Any:
    return build_model(*pipeline.arguments[stage], device="meta")
