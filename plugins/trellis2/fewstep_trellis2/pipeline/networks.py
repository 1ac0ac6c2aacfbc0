"""What every run of a pipeline needs: its networks, one by one, the tokens of a picture, and a flow's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fewstep_trellis.pipeline.memory import OnDevice
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.request import Prompt, about_one
from fewstep_trellis.pipeline.sampling import draw, guided, replayed
from fewstep_trellis.pipeline.students import Student
from PIL import Image
from torch import Tensor

from fewstep.core.batch import Condition
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep.errors import FewstepError
from fewstep_trellis2.conditioning.dino import SIZES, image_conditioner
from fewstep_trellis2.pipeline.loading import AnyPipeline
from fewstep_trellis2.pipeline.spec import FINE, KINDS, STAGE, Kind

Prompts = dict[int, Prompt]  # by pixels on a side


@dataclass
class Networks(OnDevice):
    """The networks of a pipeline, or students in their place, on the device that they run on.

    Args:
        pipeline: where the models come from.
        kind: which of ``KINDS``.
        recipes: how each stage is sampled.
        students: networks in place of the pipeline's flows, by stage.
        device, low_memory, graphs: see ``OnDevice``.
        encoder: name or folder of the image encoder; None: the one that ``pipeline.json`` names.
    """

    pipeline: AnyPipeline
    kind: str
    recipes: dict[str, Recipe]
    students: dict[str, Student] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    low_memory: bool = False
    encoder: str | None = None
    graphs: bool = False

    @property
    def way(self) -> Kind:
        """The way through the stages that ``kind`` names."""
        return KINDS[self.kind]

    @torch.no_grad()
    def prompts(self, pictures: Sequence[tuple[str, Image.Image]], background: Any = "remove") -> Prompts:
        """The tokens of a picture at each size that the stages see it in.

        Args:
            pictures: pairs of its name, for messages, and the picture.
            background: "remove" or "keep", of pictures without transparency.

        Raises:
            Unusable: a picture that shows no object, whose background cannot be removed, or memory ran out.
            FewstepError: an encoder that cannot be loaded, or whose tokens do not fit the flows.
        """
        sizes = SIZES if FINE & {*self.way.shape, self.way.texture} else SIZES[:1]
        lent = self.shelf.lend("encoder", self._load_encoder)
        with self._guarded(), lent as encoder, self.clock("condition"):
            with about_one():
                prepared = [encoder.prepare(picture, name, background) for name, picture in pictures]
            return {size: Prompt(encoder.encode(prepared, size).cpu(), None, tuple(prepared)) for size in sizes}

    def _load_encoder(self) -> Any:
        wanted = self.pipeline.arguments(self.way.texture).get("cond_channels")
        encoder = image_conditioner(self.encoder or self.pipeline.spec.encoder)
        if encoder.channels != wanted:
            raise FewstepError(
                f"--image-encoder: {encoder.name} has {encoder.channels} channels; the flows take {wanted}"
            )
        return encoder

    def _condition(self, role: str, prompts: Prompts) -> Condition:
        return prompts[SIZES[role in FINE]].condition(1, self.device)

    def _sample(self, role: str, flow: Any, noise: Tensor, layout: Layout, cond: Condition, seed: int) -> Tensor:
        recipe = self.recipes[STAGE[role]]
        step = Step(index=0, interpolant=flow.interpolant, seed=seed, device=self.device)
        field = guided(replayed(flow, self.replays), recipe)
        return draw(field, recipe, noise.to(self.device), cond, layout, step, self.clock.on_step)

    def _flow(self, role: str) -> Any:
        if student := self.students.get(STAGE[role]):
            return self.shelf.lend(str(student.path), student.load)
        return self.shelf.lend(role, lambda: self.pipeline.flow(role))

    def _lent(self, role: str) -> Any:
        return self.shelf.lend(role, lambda: self.pipeline.model(role))
