"""3-D Gaussians as TRELLIS's decoder makes them: raw fields, and their activated values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import unknown
from fewstep_shapes3d.representations.moving import moved

ACTIVATIONS = ("softplus", "exp")
AABB = (-0.5, -0.5, -0.5, 1.0, 1.0, 1.0)  # origin and size of the cube that raw positions in [0, 1] are mapped to


@dataclass(frozen=True, eq=False, repr=False)
class Gaussians:
    """N Gaussians: raw as the decoder put them out, and by properties their activated values.

    Args:
        raw_xyz: [N, 3] in [0, 1].
        features_dc: [N, 1, 3], colour as the constant spherical harmonic.
        raw_scaling: [N, 3].
        raw_rotation: [N, 4], added to (1, 0, 0, 0).
        raw_opacity: [N, 1].
        aabb: origin and size of the cube of the scene.
        minimum_kernel_size: least standard deviation, added in quadrature.
        scaling_bias: standard deviation of a raw 0, before the minimum.
        opacity_bias: opacity of a raw 0.
        scaling_activation: "softplus" or "exp".

    Raises:
        FewstepError: for an unknown activation.
    """

    raw_xyz: Tensor
    features_dc: Tensor
    raw_scaling: Tensor
    raw_rotation: Tensor
    raw_opacity: Tensor
    aabb: tuple[float, ...] = AABB
    minimum_kernel_size: float = 0.0
    scaling_bias: float = 0.01
    opacity_bias: float = 0.1
    scaling_activation: str = "softplus"

    def __post_init__(self) -> None:
        if self.scaling_activation not in ACTIVATIONS:
            raise unknown("scaling_activation", self.scaling_activation, ACTIVATIONS)

    def __repr__(self) -> str:
        return f"Gaussians({len(self.raw_xyz)})"

    @classmethod
    def of_config(cls, fields: Mapping[str, Tensor], config: Mapping[str, Any]) -> Gaussians:
        """From fields under the official names (``_xyz``, ``_features_dc``, ...) and a ``representation_config``."""
        return cls(
            fields["_xyz"],
            fields["_features_dc"],
            fields["_scaling"],
            fields["_rotation"],
            fields["_opacity"],
            minimum_kernel_size=float(config.get("3d_filter_kernel_size", 0.0)),
            scaling_bias=float(config.get("scaling_bias", 0.01)),
            opacity_bias=float(config.get("opacity_bias", 0.1)),
            scaling_activation=str(config.get("scaling_activation", "softplus")),
        )

    def __len__(self) -> int:
        return len(self.raw_xyz)

    @property
    def xyz(self) -> Tensor:
        """[N, 3] centres in the scene."""
        origin, size = self.raw_xyz.new_tensor(self.aabb).split(3)
        scene: Tensor = self.raw_xyz * size + origin
        return scene

    @property
    def scaling(self) -> Tensor:
        """[N, 3] standard deviations along the Gaussian's own axes."""
        if self.scaling_activation == "exp":
            grown = torch.exp(self.raw_scaling + math.log(self.scaling_bias))
        else:
            # The inverse of softplus: log(e^b - 1).
            grown = F.softplus(self.raw_scaling + math.log(math.expm1(self.scaling_bias)))
        floored: Tensor = (grown.square() + self.minimum_kernel_size**2).sqrt()
        return floored

    @property
    def rotation(self) -> Tensor:
        """[N, 4] unit quaternions (w, x, y, z)."""
        return F.normalize(self.unnormalised_rotation, dim=-1)

    @property
    def unnormalised_rotation(self) -> Tensor:
        """[N, 4] quaternions before they are made unit length."""
        return self.raw_rotation + self.raw_rotation.new_tensor([1.0, 0.0, 0.0, 0.0])

    @property
    def opacity(self) -> Tensor:
        """[N, 1] in (0, 1)."""
        return torch.sigmoid(self.opacity_logit)

    @property
    def opacity_logit(self) -> Tensor:
        """[N, 1], the opacity before the sigmoid; finite even where the opacity rounds to 1."""
        return self.raw_opacity + math.log(self.opacity_bias / (1 - self.opacity_bias))

    def to(self, device: torch.device | str) -> Gaussians:
        """The same Gaussians on another device."""
        return moved(self, device)
