"""What is asked of a run, and what comes out of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_trellis.pipeline.prompt import Prompt, Unusable
from fewstep_trellis.pipeline.sampling import MULTI_IMAGE

SEED = 42  # the reference's default


@dataclass(frozen=True)
class Objects:
    """What was made of one prompt. All tensors are on the CPU.

    Args:
        numbers: which of the samples asked for these are; one whose structure came out empty is missing.
        layout: occupied voxels of each sample, ``coords`` int32 [T, 3].
        latents: [T, C] as the decoders took them.
        resolution: voxels on a side of the grid.
        decoded: by decoder role, one representation a sample.
    """

    numbers: list[int]
    layout: Packed
    latents: Tensor
    resolution: int
    decoded: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A prompt, how many objects to make of it, and from which noise.

    Args:
        prompt: tokens of one object.
        samples: objects to make, as one batch.
        seed: of the noise of both stages, which comes from one generator on the CPU, structure first, as in the
            reference: a seed means the same noise there and here, on any device.
        multi_image: "stochastic" or "multidiffusion", for prompts of several pictures.
    """

    prompt: Prompt
    samples: int = 1
    seed: int = SEED
    multi_image: str = MULTI_IMAGE[0]


def occupied(coords: Tensor, samples: int) -> tuple[list[int], Packed]:
    """Which samples have voxels, and the layout of these.

    Args:
        coords: int [T, 4] as (sample, x, y, z), samples ascending.
        samples: how many there are.

    Raises:
        Unusable: when none has any.
    """
    counts = torch.bincount(coords[:, 0].long(), minlength=samples).tolist()
    numbers = [number for number, count in enumerate(counts) if count]
    if not numbers:
        raise Unusable(
            "the structure came out empty: no voxel is occupied; try another --seed, more --steps, more --guidance, "
            "or a picture with one clear object"
        )
    if len(numbers) < samples:
        empty = ", ".join(str(number + 1) for number, count in enumerate(counts) if not count)
        warnings.warn(f"the structure of sample {empty} came out empty; the others go on", stacklevel=2)
    return numbers, Packed.of_lengths([count for count in counts if count], coords[:, 1:])
