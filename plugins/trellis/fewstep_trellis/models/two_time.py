"""A second time for the flow models, which the official ones do not have."""

from __future__ import annotations

from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep_trellis.models.embeddings import JumpEmbedder
from fewstep_trellis.models.precision import HalfTorso


class TwoTime(HalfTorso):
    """A flow model that takes the time s that a jump ends at, once ``take_second_time`` was called."""

    t_embedder: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.jump_embedder: JumpEmbedder | None = None

    def take_second_time(self, channels: int) -> None:
        """Add an embedder of t - s, which changes no answer until it is trained. A checkpoint then says so."""
        self.args["two_time"] = True
        self.jump_embedder = JumpEmbedder(channels).to(next(self.t_embedder.parameters()))

    def embedded(self, t: Tensor, s: Tensor | None) -> Tensor:
        """``[B, C]`` of times ``[B]`` from 0 to 1000.

        Raises:
            FewstepError: for an s that this model does not take.
        """
        embedding: Tensor = self.t_embedder(t)
        if s is None:
            return embedding
        if self.jump_embedder is None:
            raise FewstepError("this network takes one time; a student for a method that needs 'two_time' takes two")
        out: Tensor = embedding + self.jump_embedder((t - s) / 1000)
        return out
