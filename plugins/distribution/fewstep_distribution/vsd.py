"""Variational score distillation (VSD; ProlificDreamer, arXiv 2305.16213) with a LoRA critic."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Batch, Condition
from fewstep.core.objective import Nets, NetSpec, Step
from fewstep.errors import FewstepError
from fewstep.methods.fakes import compare
from fewstep_distribution.config import VSDConfig
from fewstep_distribution.critic import Critical, followed


class VSD(Critical[VSDConfig]):
    """The gradient of KL(fakes || teacher) over all noise levels, from the two predictions of the noise.

    With x_t between a sample x = x_s - s F(x_s, s) and fresh noise, the gradient with respect to x is

        g = w(t) (noise of the teacher - noise of the critic),    w(t) = t^2 / (t^2 + (1 - t)^2)

    (equation 9), where a velocity v predicts the noise x_t + (1 - t) v, so that g = w(t) (1 - t) (vT - v). w is the
    share of the noise in the variance of x_t, sigma_t^2 in the published code. Unlike in DMD2, a sample's gradient is
    not normalised by its error, and the critic is the teacher with low-rank adapters (LoRA). The paper optimises a 3-D
    scene through its renderings, with one critic update per update of the scene. Its camera conditioning and its
    annealed range of t do not apply here, and the student is updated less often than the critic, as in DMD2.
    """

    Config = VSDConfig

    def networks(self) -> dict[str, NetSpec]:
        """The student and the critic, of which only the adapters are trained."""
        return {"student": NetSpec(), "critic": NetSpec(build=self._critic, lr_scale=self.config.critic_lr)}

    def _critic(self, backbone: Backbone) -> Backbone:
        return adapted(backbone, self.config.rank)

    def matching(self, x: Tensor, fakes: Batch, cond: Condition, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout = fakes.layout
        with torch.no_grad():
            at = compare(self.look("vsd"), fakes, self.critic(cond, layout, nets), nets, step)
            noise_B = at.t_B.square() / (at.t_B.square() + (1 - at.t_B).square())
        return {"vsd": followed(at, noise_B * (1 - at.t_B), x, layout, self.config.reduction)}


class LowRank(nn.Module):
    """W + up @ down for a weight W [out, in] (LoRA, arXiv 2106.09685, with alpha equal to the rank).

    ``down`` [rank, in] is initialised as a linear layer's weight, ``up`` [out, rank] with zeros.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapted(backbone: Backbone, rank: int) -> Backbone:
    """The network itself, modified in place: frozen, with an adapter on the weight of each linear layer.

    Raises:
        FewstepError: for a network without linear layers.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise FewstepError(f"low-rank adapters sit on linear layers, and {type(backbone).__name__} has none")
    backbone.requires_grad_(False)
    for layer in layers:
        register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return backbone
