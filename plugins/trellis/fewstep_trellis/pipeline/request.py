"""What is asked of a run, and what comes out of it: prompts, requests, objects."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep_trellis.conditioning.several import MODES, several_condition

if TYPE_CHECKING:
    from PIL import Image

SEED = 42  # the reference's default


class Unusable(FewstepError):
    """An error about one prompt only; others may still work."""


@contextmanager
def about_one() -> Iterator[None]:
    """Mark errors in the block as being about one prompt. Raises Unusable for every FewstepError."""
    try:
        yield
    except FewstepError as error:
        raise Unusable(str(error)) from None


@dataclass(frozen=True)
class Prompt:
    """Tokens of one object.

    Args:
        tokens: [V, L, C], one row for each picture (V = 1 for one picture or a text).
        negative: [1, L, C] for guidance; None means zeros.
        pictures: as the encoder saw them, for previews.
    """

    tokens: Tensor
    negative: Tensor | None = None
    pictures: tuple[Image.Image, ...] = ()

    def condition(self, batch: int, device: torch.device) -> Condition:
        """The condition of ``batch`` samples: tokens [B, L, C], of several pictures [B, V, L, C]."""
        negative = None if self.negative is None else self.negative.to(device)
        if len(self.tokens) > 1:
            return several_condition(self.tokens.to(device), batch, None if negative is None else negative[0])
        rows = (batch, *self.tokens.shape[1:])
        return Condition(self.tokens.to(device).expand(rows), None if negative is None else negative.expand(rows))


def of_pictures(encoder: Any, pictures: Sequence[tuple[str, Image.Image]], background: str = "remove") -> Prompt:
    """The prompt of one or several pictures of an object.

    Args:
        encoder: an ``ImageConditioner``.
        pictures: their names, for messages, and themselves.
        background: "remove" or "keep", of pictures without transparency.

    Raises:
        Unusable: a picture that shows no object, or whose background cannot be removed.
    """
    with about_one():
        prepared = [encoder.prepare(picture, name, background) for name, picture in pictures]
    return replace(_of(encoder.encode(prepared), encoder.negative(1)), pictures=tuple(prepared))


def of_text(encoder: Any, text: str) -> Prompt:
    """The prompt of a text; ``encoder`` is a ``TextConditioner``."""
    return _of(encoder.encode([text]), encoder.negative(1))


def _of(tokens: Tensor, negative: Tensor | None) -> Prompt:
    return Prompt(tokens.cpu(), None if negative is None else negative.cpu())


@dataclass(frozen=True)
class Objects:
    """What was made of one prompt. All tensors are on the CPU.

    Args:
        numbers: of these samples among all that were asked for; those whose structure came out empty are missing.
        layout: occupied voxels of each sample, ``coords`` int32 [T, 3].
        latents: [T, C] as the decoders took them.
        resolution: voxels on a side of the grid.
        decoded: by decoder role, one representation per sample.
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
        seed: of the noise of both stages, drawn from one generator on the CPU, structure first, as in the reference: a
            seed gives the same noise there and here, on any device.
        multi_image: "stochastic" or "multidiffusion", for prompts of several pictures.
        largest_part: decode only the largest connected part of each structure, without floating parts.
    """

    prompt: Prompt
    samples: int = 1
    seed: int = SEED
    multi_image: str = MODES[0]
    largest_part: bool = False


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
