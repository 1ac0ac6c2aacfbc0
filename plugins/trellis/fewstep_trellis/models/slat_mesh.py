"""The decoder of structured latents to meshes."""

from __future__ import annotations

from fewstep_shapes3d.mesh import extract_mesh
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.geometry import children, coords_of
from torch import Tensor, nn

from fewstep.core.layout import Packed
from fewstep_trellis.models.arguments import check_divides
from fewstep_trellis.models.recompute import run_block
from fewstep_trellis.models.slat_decoders import Fields, SLatDecoder
from fewstep_trellis.models.sparse_blocks import GROUPS, SparseSubdivideBlock


class SLatMeshDecoder(SLatDecoder):
    """Latents to the cubes of a FlexiCubes grid at four times the resolution.

    Args: as of :class:`SLatDecoder`; ``representation_config`` has ``use_color``. ``model_channels`` is a multiple of
        256, since the last norm has 32 groups on an eighth of them.

    Raises:
        FewstepError: arguments that do not fit together.
    """

    def fields_of(self) -> Fields:
        fields: Fields = {"sdf": (8,), "deform": (8, 3), "weights": (21,)}
        return {**fields, "color": (8, 6)} if self.rep_config.get("use_color", False) else fields

    def finish_layers(self) -> None:
        width = self.model_channels
        check_divides("model_channels", width, 8 * GROUPS, "8 times the groups of the last norm")
        self.upsample = nn.ModuleList(
            [SparseSubdivideBlock(width, width // 4), SparseSubdivideBlock(width // 4, width // 8)]
        )
        self.out_layer = nn.Linear(width // 8, self.out_channels)

    def torso(self) -> list[nn.Module]:
        return [self.blocks, self.upsample]

    def forward(self, z: Tensor, layout: Packed) -> tuple[Tensor, Packed]:
        """Latents ``[T, Cz]`` to the raw features ``[64 T, 53 or 101]`` of the cubes, and the cubes' layout.

        A row holds the signed distance and the deformation of 8 corners, 21 weights, and with colour 8 x 6 attributes.
        """
        h = self.encode_voxels(z, layout)
        for block in self.upsample:
            h, layout = run_block(block, h, layout, recompute=self.use_checkpoint), children(layout)
        return self.out_layer(h.to(z.dtype)), layout

    def decode(self, z: Tensor, layout: Packed, training: bool = False) -> list[Mesh]:
        """The mesh of each sample in [-0.5, 0.5]^3; with ``training`` also the extraction's own loss terms."""
        raw, cubes = self(z, layout)
        return self.meshes(raw, cubes, training=training)

    def meshes(self, raw: Tensor, cubes: Packed, training: bool = False) -> list[Mesh]:
        """The output of :meth:`forward` as meshes, closed at the grid's border unless ``training``; ``raw`` is kept."""
        rows = zip(coords_of(cubes).split(cubes.lengths_list), raw.split(cubes.lengths_list), strict=True)
        return [
            extract_mesh(coords, feats, 4 * self.resolution, training=training, closed=not training)
            for coords, feats in rows
        ]
