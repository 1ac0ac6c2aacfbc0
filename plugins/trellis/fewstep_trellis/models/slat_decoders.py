"""Decoders of structured latents: Gaussians, radiance fields, meshes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, invalid
from fewstep.layout import Packed
from fewstep.sparse import children, coords_of
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.slat_vae import SparseTransformer
from fewstep_trellis.models.sparse_blocks import GROUPS, SparseSubdivideBlock
from fewstep_trellis.representations import Gaussians, Mesh, RadianceField

Ranges = dict[str, tuple[int, ...]]


class _Decoder(SparseTransformer):
    """What the three share: the constructor, and rows of ``out_layer`` cut into named fields."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4,
        attn_mode: str = "swin",
        window_size: int | None = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_checkpoint: bool = False,
        qk_rms_norm: bool = False,
        representation_config: dict[str, Any] | None = None,
    ) -> None:
        arguments = locals()
        super().__init__(
            latent_channels,
            model_channels,
            num_blocks,
            num_heads,
            num_head_channels,
            mlp_ratio,
            attn_mode,
            window_size,
            pe_mode,
            use_checkpoint,
            qk_rms_norm,
        )
        self.remember(arguments)
        self.resolution, self.rep_config = resolution, dict(representation_config or {})
        self.fields = self.fields_of(self.rep_config)
        self.out_channels = sum(math.prod(shape) for shape in self.fields.values())
        self.finish_layers()
        self.start(use_fp16=use_fp16)

    def fields_of(self, config: dict[str, Any]) -> Ranges:
        """Names and shapes of what a row of the output holds, in order."""
        raise TypeError(f"{type(self).__name__} does not implement fields_of")

    def finish_layers(self) -> None:
        """Make the layers after the torso."""
        self.out_layer = nn.Linear(self.model_channels, self.out_channels)

    def split_fields(self, raw: Tensor) -> dict[str, Tensor]:
        """``[T, out]`` to ``[T, *shape]`` for each field."""
        widths = [math.prod(shape) for shape in self.fields.values()]
        parts = raw.split(widths, -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.fields.items(), parts, strict=True)}

    def forward(self, z: Tensor, layout: Packed) -> Tensor:
        """Latents ``[T, Cz]`` to ``[T, out]``: the fields of each voxel, raw."""
        out: Tensor = self.out_layer(self.normed(self.encode_voxels(z, layout), z.dtype))
        return out


def needed(config: dict[str, Any], key: str, owner: str) -> Any:
    """A key of ``representation_config``. Raises FewstepError where it is missing."""
    if key not in config:
        raise FewstepError(f"{owner}: representation_config.{key} is missing; got {', '.join(config) or 'nothing'}")
    return config[key]


class SLatGaussianDecoder(_Decoder):
    """Latents to 3-D Gaussians, some at each voxel.

    Args: as of :class:`SparseTransformer`, and
        resolution: R, edge of the voxel grid.
        latent_channels: Cz.
        representation_config: ``num_gaussians`` per voxel, ``voxel_size`` (reach of an offset in voxels), ``lr``
            (factor of each raw field), ``perturb_offset``, ``3d_filter_kernel_size``, ``scaling_bias``,
            ``opacity_bias``, ``scaling_activation``.

    Raises:
        FewstepError: arguments that do not fit together, or a missing key.
    """

    offset_perturbation: Tensor

    def fields_of(self, config: dict[str, Any]) -> Ranges:
        count = int(needed(config, "num_gaussians", type(self).__name__))
        return {
            "_xyz": (count, 3),
            "_features_dc": (count, 1, 3),
            "_scaling": (count, 3),
            "_rotation": (count, 4),
            "_opacity": (count, 1),
        }

    def finish_layers(self) -> None:
        super().finish_layers()
        count, reach = self.fields["_xyz"][0], float(self.rep_config.get("voxel_size", 1.0))
        spread = torch.zeros(count, 3)
        if self.rep_config.get("perturb_offset", False):
            # Distinct starting places within the voxel; what tanh makes of them fills the voxel evenly.
            spread = torch.atanh((2 * hammersley(count) - 1) / reach) / self._rate("_xyz")
        self.register_buffer("offset_perturbation", spread)

    def _rate(self, field: str) -> float:
        return float(self.rep_config.get("lr", {}).get(field, 1.0))

    def decode(self, z: Tensor, layout: Packed) -> list[Gaussians]:
        """The Gaussians of each sample, in the unit cube around 0."""
        return self.representations(self(z, layout), layout)

    def representations(self, raw: Tensor, layout: Packed) -> list[Gaussians]:
        """What :meth:`forward` put out, as Gaussians."""
        fields = {name: value * self._rate(name) for name, value in self.split_fields(raw).items()}
        half = 0.5 * float(self.rep_config.get("voxel_size", 1.0)) / self.resolution
        centre = ((coords_of(layout).to(raw.dtype) + 0.5) / self.resolution)[:, None]
        fields["_xyz"] = centre + torch.tanh(fields["_xyz"] + self.offset_perturbation) * half
        parts = {name: value.split(layout.lengths_list) for name, value in fields.items()}
        return [
            Gaussians.of_config({name: part[i].flatten(0, 1) for name, part in parts.items()}, self.rep_config)
            for i in range(layout.batch_size)
        ]


def hammersley(count: int) -> Tensor:
    """``[count, 3]`` evenly spread points in (0, 1)^3 (Hammersley 1960), never on the border."""
    places = torch.arange(count, dtype=torch.float64)
    return torch.stack([(places + 0.5) / count, _radical_inverse(count, 2), _radical_inverse(count, 3)], 1).float()


def _radical_inverse(count: int, base: int) -> Tensor:
    """The digits of 1, 2, ... in ``base``, mirrored behind the point."""
    values = []
    for number in range(1, count + 1):
        value, weight = 0.0, 1.0 / base
        while number:
            number, digit = divmod(number, base)
            value, weight = value + digit * weight, weight / base
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


class SLatRadianceFieldDecoder(_Decoder):
    """Latents to a radiance field: low-rank factors, density and colour at each voxel.

    Args: as of :class:`SLatGaussianDecoder`, with ``rank`` and ``dim`` in ``representation_config``.

    Raises:
        FewstepError: arguments that do not fit together, or a missing key.
    """

    def fields_of(self, config: dict[str, Any]) -> Ranges:
        rank, dim = (int(needed(config, key, type(self).__name__)) for key in ("rank", "dim"))
        return {"trivec": (rank, 3, dim), "density": (rank,), "features_dc": (rank, 1, 3)}

    def decode(self, z: Tensor, layout: Packed) -> list[RadianceField]:
        """The field of each sample."""
        return self.representations(self(z, layout), layout)

    def representations(self, raw: Tensor, layout: Packed) -> list[RadianceField]:
        """What :meth:`forward` put out, as radiance fields."""
        fields = self.split_fields(raw)
        position = ((coords_of(layout).to(raw.dtype) + 0.5) / self.resolution).split(layout.lengths_list)
        parts = {name: value.split(layout.lengths_list) for name, value in fields.items()}
        return [
            RadianceField(
                position[i], parts["trivec"][i] + 1, parts["density"][i], parts["features_dc"][i], self.resolution
            )
            for i in range(layout.batch_size)
        ]


class SLatMeshDecoder(_Decoder):
    """Latents to the cubes of a FlexiCubes grid at four times the resolution.

    Args: as of :class:`SLatGaussianDecoder`, with ``use_color`` in ``representation_config``; ``model_channels`` a
        multiple of 256, since the last norm has 32 groups on an eighth of them.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def fields_of(self, config: dict[str, Any]) -> Ranges:
        fields: Ranges = {"sdf": (8,), "deform": (8, 3), "weights": (21,)}
        return {**fields, "color": (8, 6)} if config.get("use_color", False) else fields

    def finish_layers(self) -> None:
        width = self.model_channels
        if width % (8 * GROUPS):
            raise invalid("model_channels", width, f"a multiple of {8 * GROUPS}")
        self.upsample = nn.ModuleList(
            [SparseSubdivideBlock(width, width // 4), SparseSubdivideBlock(width // 4, width // 8)]
        )
        self.out_layer = nn.Linear(width // 8, self.out_channels)

    def torso(self) -> list[nn.Module]:
        return [self.blocks, self.upsample]

    def forward(self, z: Tensor, layout: Packed) -> tuple[Tensor, Packed]:  # type: ignore[override]
        """Latents ``[T, Cz]`` to the raw features ``[64 T, 53 or 101]`` of the cubes, and their layout.

        A row holds the signed distance and the deformation of 8 corners, 21 weights, and 8 x 6 attributes.
        """
        h = self.encode_voxels(z, layout)
        for block in self.upsample:
            h, layout = run_block(block, h, layout, recompute=self.use_checkpoint), children(layout)
        return self.out_layer(h.to(z.dtype)), layout

    def decode(self, z: Tensor, layout: Packed, training: bool = False) -> list[Mesh]:
        """The mesh of each sample in [-0.5, 0.5]^3."""
        from fewstep_trellis.mesh import extract_mesh

        raw, finer = self(z, layout)
        rows = zip(coords_of(finer).split(finer.lengths_list), raw.split(finer.lengths_list), strict=True)
        return [extract_mesh(coords, feats, 4 * self.resolution, training=training) for coords, feats in rows]
