"""From a prompt to objects: structure, latents on its voxels, decoders. The order and the seeds are the reference's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fewstep_shapes3d.parts import largest_voxels
from torch import Tensor

from fewstep.core.layout import Dense, Packed
from fewstep.errors import FewstepError
from fewstep_trellis.conditioning import image_conditioner, text_conditioner
from fewstep_trellis.models import occupied_coords
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.memory import OnDevice
from fewstep_trellis.pipeline.recipe import Recipe, recipe_of
from fewstep_trellis.pipeline.request import Objects, Prompt, Request, occupied
from fewstep_trellis.pipeline.sampling import sample
from fewstep_trellis.pipeline.spec import GAUSSIANS, MESH, RADIANCE, STAGES, STRUCTURE_DECODER
from fewstep_trellis.pipeline.students import Student, find_students

NAMES = {MESH: "mesh decoder", GAUSSIANS: "Gaussian decoder", RADIANCE: "radiance-field decoder"}
Part = tuple[Tensor, Packed]


@dataclass
class Runner(OnDevice):
    """A pipeline ready to run.

    Args:
        pipeline: where the models come from.
        recipes: how each stage is sampled.
        students: networks in place of the pipeline's flows, by stage.
        device, low_memory, graphs: see :class:`OnDevice`.
        encoder: name, folder or file of the encoder of conditions; None: the one that ``pipeline.json`` names.
    """

    pipeline: Pipeline
    recipes: dict[str, Recipe]
    students: dict[str, Student] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    low_memory: bool = False
    encoder: str | None = None
    graphs: bool = False

    @classmethod
    def open(cls, name: str | Path, students: Iterable[str | Path] = (), **more: Any) -> Runner:
        """The pipeline of a folder or hub name with these students, sampled as its file and their contracts say.

        Args:
            name: see :meth:`Pipeline.open`.
            students: what ``--student`` takes.
            more: the other arguments of the class.

        Raises:
            FewstepError: what cannot be opened or does not fit. A missing contract is a warning.
        """
        pipeline = Pipeline.open(name)
        found = find_students(map(str, students), pipeline)
        recipes = {}
        for stage in STAGES:
            recipes[stage], said = recipe_of(pipeline.spec.sampler(stage), found.get(stage))
            for text in said:
                warnings.warn(text, stacklevel=2)
        return cls(pipeline, recipes, found, **more)

    @torch.no_grad()
    def prompt(self, make: Callable[[Any], Prompt]) -> Prompt:
        """What ``make`` (of :mod:`fewstep_trellis.pipeline.request`) makes with the encoder of conditions.

        Raises:
            Unusable: a picture that cannot be used, or memory ran out.
            FewstepError: an encoder that cannot be loaded, or whose tokens do not fit the flows.
        """
        lent = self.shelf.lend("encoder", self._load_encoder)
        with self._guarded(), lent as encoder, self.clock("condition"):
            return make(encoder)

    def _load_encoder(self) -> Any:
        spec, wanted = self.pipeline.spec, self.pipeline.arguments["ss"][1].get("cond_channels")
        build = image_conditioner if spec.kind == "image" else text_conditioner
        encoder = build(self.encoder or spec.encoder)
        if encoder.channels != wanted:
            raise FewstepError(
                f"--{spec.kind}-encoder: {encoder.name} has {encoder.channels} channels; the flows take {wanted}"
            )
        return encoder

    @torch.no_grad()
    def __call__(self, request: Request, decoders: Iterable[str] = (MESH,)) -> Objects:
        """Make the objects of a prompt.

        Args:
            request: what to make.
            decoders: roles of the decoders to run.

        Raises:
            Unusable: every structure came out empty, or memory ran out.
            FewstepError: a model that cannot be loaded.
        """
        generator = torch.Generator().manual_seed(request.seed)
        with self._guarded(request.samples):
            logits = self._structures(self._structure_latents(request, generator))
            numbers, layout = occupied(occupied_coords(logits), request.samples)
            latents = self._latents(request, layout, generator)
            if request.largest_part:
                latents, layout = largest_voxels(latents, layout)
            parts = [layout.select(latents, torch.tensor([row])) for row in range(layout.batch_size)]
            decoded = {role: self.decode(role, parts) for role in decoders}
        return Objects(numbers, layout, latents, logits.shape[-1], decoded)

    def _structure_latents(self, request: Request, generator: torch.Generator) -> Tensor:
        """[N, C, r, r, r] on the device."""
        with self._flow("ss") as flow, self.clock("structure flow"):
            args, size = flow.model.args, request.samples
            noise = torch.randn(size, args["in_channels"], *[args["resolution"]] * 3, generator=generator)
            return self._sample("ss", flow, noise, Dense(size), request)

    def _structures(self, z: Tensor) -> Tensor:
        """Occupancy logits [N, 1, R, R, R] on the CPU."""
        with self._lent(STRUCTURE_DECODER) as decoder, self.clock("structure decoder"):
            return torch.cat([self._replayed(decoder, one).cpu() for one in z.split(1)])

    def _latents(self, request: Request, layout: Packed, generator: torch.Generator) -> Tensor:
        """[T, C] as the decoders take them, on the CPU."""
        with self._flow("slat") as flow, self.clock("latent flow"):
            noise = torch.randn(layout.rows, flow.model.args["in_channels"], generator=generator)
            x = self._sample("slat", flow, noise, layout.to(self.device), request)
            normalisation = getattr(flow, "normalisation", None) or self.pipeline.spec.slat_normalization
            return normalisation.undo(x).cpu()

    def _sample(self, stage: str, flow: Any, noise: Tensor, layout: Dense | Packed, request: Request) -> Tensor:
        recipe, x = self.recipes[stage], noise.to(self.device)
        how = request.seed, request.multi_image, self.clock.on_step, self.replays
        return sample(flow, recipe, x, layout, request.prompt, *how)

    @torch.no_grad()
    def decode(self, role: str, parts: list[Part]) -> list[Any]:
        """One representation per sample, on the CPU; decoded one by one, since a batch would need the memory of all.

        Args:
            role: of the decoder.
            parts: latents [T, C] and layout of each sample.

        Raises:
            Unusable: memory ran out.
            FewstepError: a model that cannot be loaded.
        """
        found = []
        with self._guarded(), self._lent(role) as decoder, self.clock(NAMES[role]):
            for z, layout in parts:
                found += [made.to("cpu") for made in decoder.decode(z.to(self.device), layout.to(self.device))]
        return found

    def _flow(self, stage: str) -> Any:
        if student := self.students.get(stage):
            return self.shelf.lend(str(student.path), student.load)
        return self.shelf.lend(STAGES[stage], lambda: self.pipeline.flow(stage))

    def _lent(self, role: str) -> Any:
        return self.shelf.lend(role, lambda: self.pipeline.model(role))
