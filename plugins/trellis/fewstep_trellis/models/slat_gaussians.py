"""The decoder of structured latents to 3-D Gaussians."""

from __future__ import annotations

import torch
from fewstep_shapes3d.representations import Gaussians
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError, invalid, unknown
from fewstep_trellis.models.slat_decoders import Fields, SLatDecoder

# An offset that starts at the limit of its reach would need atanh(1): infinite, and without a gradient.
NEAREST_TO_BORDER = 1e-4


class SLatGaussianDecoder(SLatDecoder):
    """Latents to 3-D Gaussians, some at each voxel.

    Args: as of :class:`SLatDecoder`; ``representation_config`` has ``num_gaussians`` (per voxel), ``voxel_size`` (reach
        of an offset, in voxels), ``lr`` (factor of each raw field), ``perturb_offset``, ``3d_filter_kernel_size``,
        ``scaling_bias``, ``opacity_bias``, ``scaling_activation``.

    Raises:
        FewstepError: arguments that do not fit together, a missing key, or a factor of a field that does not exist.
    """

    offset_perturbation: Tensor

    def fields_of(self) -> Fields:
        count = self.count("num_gaussians")
        return {
            "_xyz": (count, 3),
            "_features_dc": (count, 1, 3),
            "_scaling": (count, 3),
            "_rotation": (count, 4),
            "_opacity": (count, 1),
        }

    def finish_layers(self) -> None:
        super().finish_layers()
        self.reach = float(self.rep_config.get("voxel_size", 1.0))
        if self.reach <= 0:
            raise invalid("representation_config.voxel_size", self.reach, "a number above 0")
        self.rates = rates_of(self.rep_config.get("lr", {}), self.fields)
        # Distinct initial offsets, which tanh spreads evenly over the voxel.
        places = (2 * hammersley(self.count("num_gaussians")) - 1) / self.reach
        limit = 1 - NEAREST_TO_BORDER
        self.register_buffer("offset_perturbation", places.clamp(-limit, limit).atanh())

    def forward(self, z: Tensor, layout: Packed) -> Tensor:
        """Latents ``[T, Cz]`` to the raw fields of each voxel ``[T, out]``."""
        return self.project(z, layout)

    def decode(self, z: Tensor, layout: Packed) -> list[Gaussians]:
        """The Gaussians of each sample, in the unit cube around 0."""
        return self.representations(self(z, layout), layout)

    def representations(self, raw: Tensor, layout: Packed) -> list[Gaussians]:
        """What :meth:`forward` put out, as Gaussians."""
        fields = {name: value * self.rates[name] for name, value in self.split_fields(raw).items()}
        offset = fields["_xyz"]
        if self.rep_config.get("perturb_offset", False):
            offset = offset + self.offset_perturbation
        half = 0.5 * self.reach / self.resolution
        fields["_xyz"] = self.centres(layout, raw)[:, None] + offset.tanh() * half
        parts = {name: value.split(layout.lengths_list) for name, value in fields.items()}
        return [
            Gaussians.of_config({name: part[i].flatten(0, 1) for name, part in parts.items()}, self.rep_config)
            for i in range(layout.batch_size)
        ]


def rates_of(given: dict[str, float], fields: Fields) -> dict[str, float]:
    """The factor of each field; all 1 where nothing is given.

    Raises:
        FewstepError: a factor of another field, or of some fields only.
    """
    for name in given:
        if name not in fields:
            raise unknown("key of representation_config.lr", name, fields)
    if given and (missing := [name for name in fields if name not in given]):
        raise FewstepError(f"representation_config.lr: {', '.join(missing)} missing; accepted: all fields or none")
    return {name: float(given.get(name, 1.0)) for name in fields}


def hammersley(count: int) -> Tensor:
    """``[count, 3]`` evenly spread points in [0, 1)^3 (Hammersley 1960): i/count, and i mirrored in bases 2 and 3."""
    rows = [[i / count, radical_inverse(i, 2), radical_inverse(i, 3)] for i in range(count)]
    return torch.tensor(rows)


def radical_inverse(number: int, base: int) -> float:
    """The digits of ``number`` in ``base``, mirrored at the radix point."""
    value, weight = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value, weight = value + digit * weight, weight / base
    return value
