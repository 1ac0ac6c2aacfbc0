"""``fewstep.generate`` for TRELLIS.2: pictures to textured meshes. ``fewstep generate`` runs the same code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from fewstep_shapes3d.finish import Finish
from fewstep_shapes3d.finish.finish import finished_as
from fewstep_shapes3d.parts import largest_mesh
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.result import MESH, Result
from fewstep_trellis.generate.api import Options, as_asked, results_of
from fewstep_trellis.generate.inputs import Job, jobs_of
from fewstep_trellis.generate.pictures import opened

from fewstep import __version__
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError
from fewstep_trellis2.generate.models import Chosen, choose, models_of
from fewstep_trellis2.pipeline.grids import LATENT
from fewstep_trellis2.pipeline.run import Object, Runner
from fewstep_trellis2.pipeline.texture import Texturer

TEXTS = "TRELLIS.2 takes no texts; TRELLIS does: --backbone trellis --teacher microsoft/TRELLIS-text-large"


def generate(
    inputs: Any,
    *,
    student: Any = None,
    teacher: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: str | None = None,
    encoder: Any = None,
    type: str | None = None,
    mesh: Any = None,
    samples: int = 1,
    seed: int = 42,
    background: str = "remove",
    device: str = "auto",
    low_memory: bool = False,
    graphs: bool = False,
    largest_part: bool = False,
    simplify: float = 0.0,
    texture: int = 0,
    up: str = "y",
    size: float | None = None,
) -> Result | list[Result]:
    """Make textured meshes from pictures.

    Args:
        inputs: a picture (path or PIL), a folder of pictures, or a list of these.
        student: in place of the flows: a folder, "STAGE=FILE", an object with ``folder`` (a run, a loaded student), or
            several of these.
        teacher: pipeline folder or hub name; None: microsoft/TRELLIS.2-4B.
        steps: N, or (N, M, K) for structure, shape and texture; None: as the contract or ``pipeline.json`` says.
        guidance: scale, one for all stages or one for each; 1 is none.
        sampler: registered sampler, for all stages.
        encoder: name or folder of the image encoder.
        type: "512", "1024", "1024_cascade" or "1536_cascade"; None: as ``pipeline.json`` says.
        mesh: mesh file to texture as the picture shows; None: an object is made. With a mesh, ``type`` is "512" or
            "1024" (None), and only the texture's ``steps`` and ``guidance`` count.
        samples: objects per input.
        seed: of the noise.
        background: "remove" or "keep" that of opaque pictures.
        device: auto, cpu, cuda, cuda:1, ...
        low_memory: hold one model at a time.
        graphs: keep every model on the GPU, and replay the structure stage as CUDA graphs: for many inputs.
        largest_part: keep the largest connected part of each mesh.
        simplify: share of each mesh's faces to remove, from 0 to below 1 (extra ``mesh``).
        texture: texels on a side of the textures in the .glb (extra ``mesh``); 0: vertex colours.
        up: the axis that points up in the .glb, "y" or "z".
        size: of the longest side in the .glb, in metres.

    Returns:
        The result of one input; a list for several inputs, a folder, or several samples. Among several inputs, those of
        which nothing can be made are left out, with a warning.

    Raises:
        FewstepError: bad input, or nothing can be made of any input.
    """
    name = None if encoder is None else str(encoder)
    how = None, background, str(device), low_memory, name, largest_part, graphs
    options = Options(samples, seed, *how, Finish(simplify, texture, up, size))
    chosen = choose(models_of(teacher, student, steps, guidance, sampler, type, mesh))
    for line in chosen.warnings:
        warnings.warn(line, stacklevel=2)
    jobs = jobs_of(inputs if isinstance(inputs, list | tuple) else [inputs], "image", about_texts=TEXTS)
    found = results_of(Generator(chosen, options), jobs)
    return as_asked(found, inputs, jobs, options)


@dataclass(eq=False, repr=False)
class Textured(Result):
    """A given mesh, with the values of the decoded surface ``mesh`` at its vertices or in a texture."""

    given: Mesh = field(kw_only=True)

    def _finished(self) -> Mesh:
        return finished_as(self.given, self.mesh, self.finish)


class Generator:
    """Makes the results of jobs, one at a time.

    Args:
        chosen: networks and recipes.
        options: how objects are made.

    Raises:
        FewstepError: for a device that is not there, or ``largest_part`` with a given mesh.
    """

    def __init__(self, chosen: Chosen, options: Options) -> None:
        self.options, self.given = options, chosen.given
        if self.given is not None and options.largest_part:
            raise FewstepError("--largest-part: with --mesh every part of the given mesh stays; leave it out")
        how = pick_device(options.device, "--device"), options.low_memory, options.encoder, options.graphs
        parts = chosen.pipeline, chosen.kind, chosen.recipes, chosen.students, *how
        self.runner = Runner(*parts) if self.given is None else Texturer(*parts, given=self.given)

    def __call__(self, job: Job, decode: Iterable[str] = ()) -> list[Result]:
        """One result for each sample whose structure is not empty.

        Args:
            job: what to make.
            decode: "mesh" to decode it now and not on first use.

        Raises:
            Unusable: nothing can be made of this job.
            FewstepError: a model that cannot be loaded.
        """
        runner, options = self.runner, self.options
        before = dict(runner.clock.seconds)
        encoder = options.encoder or runner.pipeline.spec.encoder
        pictures = list(zip(job.names, opened(job, options.background, encoder), strict=True))
        prompts = runner.prompts(pictures, options.background)
        found = [
            self._result(job, one, prompts[min(prompts)].pictures)
            for one in runner(prompts, options.samples, options.seed)
        ]
        seconds = {stage: total - before.get(stage, 0.0) for stage, total in runner.clock.seconds.items()}
        for result in found:
            result.seconds |= {stage: passed for stage, passed in seconds.items() if passed > 0}
            for kind in decode:
                result.decode(kind)
        return found

    def _result(self, job: Job, one: Object, pictures: tuple[Any, ...]) -> Result:
        assert one.layout.coords is not None
        latents = torch.cat([one.shape, one.texture], 1)
        decoders = {MESH: self._decoder(one)}
        record = self._record(job, one)
        side = one.resolution // LATENT
        how = pictures, dict[str, float](), one.number, record, self.options.finish
        parts = job.label, one.layout.coords, latents, side, decoders, *how
        return Result(*parts) if self.given is None else Textured(*parts, given=self.given)

    def _decoder(self, one: Object) -> Callable[[], Mesh]:
        def decode() -> Mesh:
            mesh = self.runner.decode(one)
            return largest_mesh(mesh) if self.options.largest_part else mesh

        return decode

    def _record(self, job: Job, one: Object) -> dict[str, Any]:
        """How a result was made: what its files carry."""
        runner, recipes = self.runner, self.runner.recipes.values()
        return {
            "version": __version__,
            "seed": self.options.seed,
            "sample": one.number,
            "inputs": [getattr(picture, "name", "picture") for picture in job.pictures],
            "model": runner.pipeline.name,
            "type": runner.kind,
            "resolution": one.resolution,
            "stages": list(runner.recipes),
            "students": [str(runner.students[s].path) if s in runner.students else "" for s in runner.recipes],
            "steps": [recipe.steps for recipe in recipes],
            "guidance": [recipe.guidance.scale for recipe in recipes],
            "samplers": [recipe.sampler for recipe in recipes],
        }
