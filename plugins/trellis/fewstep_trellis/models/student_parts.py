"""What students have that the official flow models do not: a second time, the guidance strength, and policies."""

from __future__ import annotations

from torch import Tensor, nn

from fewstep.core.batch import Condition
from fewstep.core.policy import POINTS, repeated
from fewstep.core.strength import StrengthEmbedder
from fewstep.errors import FewstepError
from fewstep_trellis.models.blocks import Tokens
from fewstep_trellis.models.embeddings import JumpEmbedder
from fewstep_trellis.models.precision import HalfTorso

ADDED = ("two_time", "guidance_input", "points")  # among the arguments of a checkpoint only where they are used


class StudentParts(HalfTorso):
    """A flow model with optional inputs, the end time s of a jump, after ``take_second_time``, and the guidance
    strength, after ``take_strength``; after ``become_policy`` it gives several velocities. Until they are trained the
    velocity is as before. A checkpoint says which of them it has.
    """

    t_embedder: nn.Module
    out_layer: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.jump_embedder: JumpEmbedder | None = None
        self.strength_embedder: StrengthEmbedder | None = None
        self.points = 1

    def take_second_time(self, channels: int) -> None:
        """Add an embedder of t - s."""
        self.args["two_time"] = True
        self.jump_embedder = JumpEmbedder(channels).to(next(self.t_embedder.parameters()))

    def take_strength(self, channels: int) -> None:
        """Add an embedder of the guidance strength."""
        self.args["guidance_input"] = True
        self.strength_embedder = StrengthEmbedder(channels).to(next(self.t_embedder.parameters()))

    def become_policy(self, points: int = POINTS) -> None:
        """Widen the output layer to ``points`` velocities, each of which starts as the one it had."""
        self.args["points"] = points
        self.points, self.out_layer = points, repeated(self.out_layer, points)

    def velocities(self, outputs: Tensor) -> Tensor:
        """The outputs ``[..., C]`` of the output layer; of a policy ``[points, ..., C]``."""
        return outputs if self.points == 1 else outputs.unflatten(-1, (self.points, -1)).movedim(-2, 0)

    def embedded(self, t: Tensor, s: Tensor | None, cond: Tokens | Condition) -> Tensor:
        """``[B, C]`` of times ``[B]`` from 0 to 1000, and of the condition's guidance strengths.

        Raises:
            FewstepError: for an s that this model does not take.
        """
        embedding: Tensor = self.t_embedder(t)
        if self.strength_embedder is not None and isinstance(cond, Condition) and cond.strength is not None:
            embedding = embedding + self.strength_embedder(cond.strength)
        if s is None:
            return embedding
        if self.jump_embedder is None:
            raise FewstepError("this network takes one time; a student for a method that needs 'two_time' takes two")
        out: Tensor = embedding + self.jump_embedder((t - s) / 1000)
        return out
