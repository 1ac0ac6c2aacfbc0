"""What the decoders of structured latents share, and the radiance-field decoder."""

from __future__ import annotations

import math
from typing import Any

from fewstep_shapes3d.representations import RadianceField
from fewstep_shapes3d.sparse.geometry import coords_of
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep.errors import FewstepError
from fewstep_trellis.models.arguments import check_positive
from fewstep_trellis.models.sparse_transformer import SparseTransformer

Fields = dict[str, tuple[int, ...]]


class SLatDecoder(SparseTransformer):
    """The common constructor, and rows of ``out_layer`` cut into named fields. Subclasses say which fields.

    Args: as of :class:`SparseTransformer`, and
        resolution: R, edge of the voxel grid.
        latent_channels: Cz.
        use_fp16: the blocks compute in half precision.
        representation_config: how a row of the output is interpreted; each decoder lists its keys.

    Raises:
        FewstepError: arguments that do not fit together, or a missing key of ``representation_config``.
    """

    takes = "z"

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
        check_positive(resolution=resolution, latent_channels=latent_channels)
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
        self.fields = self.fields_of()
        self.out_channels = sum(math.prod(shape) for shape in self.fields.values())
        self.finish_layers()
        self.start(use_fp16=use_fp16)

    def fields_of(self) -> Fields:
        """Names and shapes of what a row of the output holds, in order."""
        raise TypeError(f"{type(self).__name__} does not implement fields_of")

    def finish_layers(self) -> None:
        """Make the layers after the blocks."""
        self.out_layer = nn.Linear(self.model_channels, self.out_channels)

    def count(self, key: str) -> int:
        """A whole number of ``representation_config``. Raises FewstepError where it is missing or below 1."""
        if key not in self.rep_config:
            got = ", ".join(self.rep_config) or "nothing"
            raise FewstepError(f"{type(self).__name__}: representation_config.{key} is missing; got {got}")
        number = int(self.rep_config[key])
        check_positive(**{f"representation_config.{key}": number})
        return number

    def split_fields(self, raw: Tensor) -> dict[str, Tensor]:
        """``[T, out]`` to ``[T, *shape]`` for each field."""
        parts = raw.split([math.prod(shape) for shape in self.fields.values()], -1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(self.fields.items(), parts, strict=True)}

    def centres(self, layout: Packed, like: Tensor) -> Tensor:
        """``[T, 3]`` the voxels' centres in [0, 1]."""
        return (coords_of(layout).to(like.dtype) + 0.5) / self.resolution


class SLatRadianceFieldDecoder(SLatDecoder):
    """Latents to a radiance field: low-rank factors, density and colour at each voxel.

    Args: as of :class:`SLatDecoder`; ``representation_config`` has ``rank`` and ``dim`` of the factors.

    Raises:
        FewstepError: arguments that do not fit together, or a missing key.
    """

    def fields_of(self) -> Fields:
        rank, dim = self.count("rank"), self.count("dim")
        return {"trivec": (rank, 3, dim), "density": (rank,), "features_dc": (rank, 1, 3)}

    def forward(self, z: Tensor, layout: Packed) -> Tensor:
        """Latents ``[T, Cz]`` to the raw fields of each voxel ``[T, out]``."""
        return self.project(z, layout)

    def decode(self, z: Tensor, layout: Packed) -> list[RadianceField]:
        """The field of each sample."""
        return self.representations(self(z, layout), layout)

    def representations(self, raw: Tensor, layout: Packed) -> list[RadianceField]:
        """What :meth:`forward` put out, as radiance fields."""
        fields = self.split_fields(raw)
        # Offset by 1: the product over the three axes then has a gradient from the start.
        columns = (self.centres(layout, raw), fields["trivec"] + 1, fields["density"], fields["features_dc"])
        place, trivec, density, colour = (column.split(layout.lengths_list) for column in columns)
        return [
            RadianceField(place[i], trivec[i], density[i], colour[i], self.resolution) for i in range(layout.batch_size)
        ]
