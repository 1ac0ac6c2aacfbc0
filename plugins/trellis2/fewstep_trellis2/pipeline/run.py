"""From a picture to textured meshes: structure, shape, texture, decoders. The order of the noise is the reference's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from fewstep_shapes3d.representations import Mesh
from fewstep_trellis.pipeline.request import Unusable, about_one, occupied
from torch import Tensor

from fewstep.core.layout import Dense, Packed
from fewstep_trellis2.latents import TextureCondition
from fewstep_trellis2.pipeline.grids import finer_cells, occupied_cells
from fewstep_trellis2.pipeline.networks import Networks, Prompts
from fewstep_trellis2.pipeline.spec import SHAPE_DECODER, STAGE, STRUCTURE_DECODER, STRUCTURE_FLOW, TEXTURE_DECODER

MAX_TOKENS = 49152  # limit of the cells in the fine shape stage
UPSAMPLINGS = 4  # doublings from the coarse shape's latent grid to the grid of 512


@dataclass(frozen=True, eq=False)
class Object:
    """What was sampled of one object, on the CPU.

    Args:
        number: which of the samples it is.
        layout: the cells that have latents, ``coords`` [T, 3].
        shape: [T, C] as the shape decoder takes them.
        texture: [T, C] as the texture decoder takes them.
        resolution: cells on a side of the mesh's grid, 16 times that of ``layout``.
    """

    number: int
    layout: Packed
    shape: Tensor
    texture: Tensor
    resolution: int


@dataclass
class Runner(Networks):
    """A pipeline ready to run.

    Args: as of ``Networks``, and
        max_tokens: the mesh's resolution is lowered, at most to 1024, until the fine shape stage has fewer cells.
    """

    max_tokens: int = MAX_TOKENS

    @torch.no_grad()
    def __call__(self, prompts: Prompts, samples: int = 1, seed: int = 42) -> list[Object]:
        """Make the objects of a prompt, one at a time to save memory.

        The noise of all stages comes from one generator on the CPU, in the reference's order, so that for the first
        object a seed gives the same noise there and here.

        Raises:
            Unusable: every structure came out empty, or memory ran out.
            FewstepError: a model that cannot be loaded.
        """
        generator = torch.Generator().manual_seed(seed)
        found: list[Object] = []
        with self._guarded(samples):
            for number in range(samples):
                try:
                    found.append(self._object(number, prompts, generator, seed))
                except Unusable as error:
                    if samples == 1:
                        raise
                    warnings.warn(f"sample {number + 1}: {error}", stacklevel=2)
        if not found:
            raise Unusable("the structures of all samples came out empty; try another --seed or a clearer picture")
        return found

    def _object(self, number: int, prompts: Prompts, generator: torch.Generator, seed: int) -> Object:
        way = self.way
        cells = occupied_cells(self._structure(prompts, generator, seed), way.structure)
        _, layout = occupied(cells.int(), 1)
        resolution, shape = way.resolution, torch.empty(0)
        for step, role in enumerate(way.shape):
            if step:
                layout, resolution = self._finer(shape, layout)
            shape = self._shape(role, layout, prompts, generator, seed)
        texture = self._texture(shape, layout, prompts, generator, seed)
        return Object(number, layout, shape, texture, resolution)

    def _structure(self, prompts: Prompts, generator: torch.Generator, seed: int) -> Tensor:
        """Occupancy logits [1, 1, R, R, R] on the CPU."""
        with self._flow(STRUCTURE_FLOW) as flow, self.clock("structure flow"):
            noise = torch.randn(1, flow.model.in_channels, *[flow.model.resolution] * 3, generator=generator)
            z = self._sample(STRUCTURE_FLOW, flow, noise, Dense(1), self._condition(STRUCTURE_FLOW, prompts), seed)
        with self._lent(STRUCTURE_DECODER) as decoder, self.clock("structure decoder"):
            return self._replayed(decoder, z).cpu()

    def _shape(self, role: str, layout: Packed, prompts: Prompts, generator: torch.Generator, seed: int) -> Tensor:
        """[T, C] as the decoder takes them, on the CPU."""
        with self._flow(role) as flow, self.clock(f"{STAGE[role]} flow"):
            noise = torch.randn(layout.rows, flow.model.in_channels, generator=generator)
            x = self._sample(role, flow, noise, layout.to(self.device), self._condition(role, prompts), seed)
            return (flow.normalisation or self.pipeline.spec.shape_slat_normalization).undo(x).cpu()

    def _finer(self, shape: Tensor, layout: Packed) -> tuple[Packed, int]:
        """The cells of the fine shape stage, from the decoded coarse one, and the resolution that they are for."""
        with self._lent(SHAPE_DECODER) as decoder, self.clock("shape upsampling"), about_one():
            fine = decoder.upsample(shape.to(self.device), layout.to(self.device), UPSAMPLINGS)
            coords = torch.cat([fine.index[:, None].to(fine.coords.dtype), fine.coords], 1).cpu()
        cells, resolution = finer_cells(coords, self.way.resolution, self.max_tokens)
        if resolution < self.way.resolution:
            warnings.warn(
                f"the mesh is made at {resolution} instead of {self.way.resolution}, for fewer than {self.max_tokens} "
                "latents",
                stacklevel=2,
            )
        return Packed.of_index(cells[:, 0], cells[:, 1:].int()), resolution

    def _texture(
        self, shape: Tensor, layout: Packed, prompts: Prompts, generator: torch.Generator, seed: int
    ) -> Tensor:
        """[T, C] as the decoder takes them, on the CPU."""
        role, spec, place = self.way.texture, self.pipeline.spec, layout.to(self.device)
        with self._flow(role) as flow, self.clock("texture flow"):
            known = (flow.shape_normalisation or spec.shape_slat_normalization).apply(shape).to(self.device)
            noise = torch.randn(layout.rows, flow.model.in_channels - known.shape[1], generator=generator)
            cond = TextureCondition.of(self._condition(role, prompts), known, place)
            x = self._sample(role, flow, noise, place, cond, seed)
            return (flow.normalisation or spec.tex_slat_normalization).undo(x).cpu()

    @torch.no_grad()
    def decode(self, one: Object) -> Mesh:
        """The textured mesh of an object, on the CPU.

        Raises:
            Unusable: memory ran out, or the latents are not those of an object.
            FewstepError: a model that cannot be loaded.
        """
        layout = one.layout.to(self.device)
        with self._guarded():
            with self._lent(SHAPE_DECODER) as decoder, self.clock("shape decoder"), about_one():
                decoded = decoder(one.shape.to(self.device), layout)
                grid = decoder.dual_grid(decoded.features, decoded.layout)
            with self._lent(TEXTURE_DECODER) as decoder, self.clock("texture decoder"):
                texture = decoder(one.texture.to(self.device), layout, decoded.subdivisions).features
            with self.clock("mesh"):
                mesh: Mesh = grid.meshes(one.resolution, (texture * 0.5 + 0.5).clamp(0, 1))[0]
        return mesh.to("cpu")
