"""The pipeline of ``fewstep generate`` at full size, on random weights that never touch a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fewstep_trellis.pipeline import Pipeline, Recipe, Request, Runner, of_pictures
from fewstep_trellis.pipeline import run as stages
from fewstep_trellis.pipeline.memory import LOADING, Clock, Shelf
from fewstep_trellis.pipeline.spec import GAUSSIANS, STAGES, PipelineSpec
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sections import models
from benchmarks.gpu.sections.models import generate
from benchmarks.gpu.voxels import shell, voxels_for
from fewstep.core.graphs import Graphed
from fewstep.core.guidance import Guidance

TOKENS = 8192
NAME = "occupied_coords"
SPEC: dict[str, Any] = {
    "models": {role: role for role in generate.ROLES},
    "sparse_structure_sampler": generate.SAMPLER,
    "slat_sampler": generate.SAMPLER,
    "slat_normalization": {"mean": [0.0] * 8, "std": [1.0] * 8},
    "image_cond_model": "random",
}


class RandomPipeline(Pipeline):
    """A pipeline whose models are built on the device, without files."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(PipelineSpec.model_validate(SPEC), None)  # type: ignore[arg-type]
        object.__setattr__(self, "bench", bench)
        found = {stage: models.described(bench, role) for stage, role in STAGES.items()}
        self.__dict__["arguments"] = found

    def model(self, role: str) -> nn.Module:
        return models.model(self.bench, role).eval().requires_grad_(False)  # type: ignore[attr-defined]


class Resident(Shelf):
    """Keeps every model on the device, as a server does."""

    def __init__(self, device: torch.device, clock: Clock, known: dict[str, Any]) -> None:
        super().__init__(device, True, clock)
        self.models = known

    @contextmanager
    def lend(self, name: str, load: Callable[[], Any]) -> Iterator[Any]:
        with self.clock(LOADING):
            if name not in self.models:
                self.models[name] = load()
        yield self.models[name]


def picture() -> Image.Image:
    """A disc on a transparent background."""
    image = Image.new("RGBA", (600, 600))
    ImageDraw.Draw(image).ellipse((100, 200, 500, 400), fill="red")
    return image


class Whole:
    """From a picture to Gaussians, and to the mesh decoder's cubes."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.known = bench, {"encoder": models.encoder(bench)}
        self.replays = Graphed(print)
        self.medians: dict[tuple[str, str, int], float] = {}  # totals by implementation, mode and steps
        self.pipeline, self.image = RandomPipeline(bench), picture()
        edge = models.described(bench, "slat_flow_model")[1]["resolution"]
        self.voxels = bench.sizes(voxels_for(TOKENS), 60)
        coords = shell(self.voxels, edge)
        self.coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int32), coords], 1)

    def once(self, steps: int, guidance: float = 1.0, graphs: bool = False) -> dict[str, float]:
        """Milliseconds by stage of one object, from its picture to its Gaussians.

        Args:
            steps: of each stage.
            guidance: scale; other than 1 doubles the evaluations, as for the teacher.
            graphs: replay the structure flow as a CUDA graph.
        """
        recipe = Recipe("euler", steps, Guidance(guidance), 3.0)
        run = Runner(self.pipeline, dict.fromkeys(STAGES, recipe), device=self.bench.device)
        run.shelf = Resident(self.bench.device, run.clock, self.known)
        run.replays = self.replays if graphs else None
        with self._shell_for_structure():
            prompt = run.prompt(lambda encoder: of_pictures(encoder, [("a disc", self.image)]))
            run(Request(prompt), (GAUSSIANS,))
        return {stage: 1e3 * seconds for stage, seconds in run.clock.seconds.items() if stage != LOADING}

    @contextmanager
    def _shell_for_structure(self) -> Iterator[None]:
        """A random structure would fill half the grid: it is still searched, but a shell replaces the result."""
        real: Callable[[Tensor], Tensor] = getattr(stages, NAME)

        def look(logits: Tensor) -> Tensor:
            real(logits)
            return self.coords

        setattr(stages, NAME, look)
        try:
            yield
        finally:
            setattr(stages, NAME, real)
