"""What one object is made from: the tokens of its pictures, or of its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.errors import FewstepError
from fewstep_trellis.conditioning import several_condition


class Unusable(FewstepError):
    """About one prompt alone: others may do."""


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
        pictures: as the encoder saw them, for a look at them.
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
