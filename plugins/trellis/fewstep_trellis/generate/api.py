"""``fewstep.generate`` for TRELLIS: pictures or texts to 3-D objects. ``fewstep generate`` runs the same code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from fewstep_shapes3d.finish import Finish
from fewstep_shapes3d.parts import largest_mesh
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.result import GAUSSIANS, MESH, RADIANCE, Result

from fewstep import __version__
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid, unknown
from fewstep_trellis.conditioning.several import MODES
from fewstep_trellis.generate.inputs import Job, jobs_of
from fewstep_trellis.generate.models import Chosen, choose, models_of
from fewstep_trellis.generate.pictures import opened
from fewstep_trellis.pipeline import spec
from fewstep_trellis.pipeline.request import Prompt, Request, Unusable, of_pictures, of_text
from fewstep_trellis.pipeline.run import Runner
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.shipped import NANO

ROLES = {MESH: spec.MESH, GAUSSIANS: spec.GAUSSIANS, RADIANCE: spec.RADIANCE}  # by a Result's name for it
BACKGROUND = ("remove", "keep")


@dataclass(frozen=True)
class Options:
    """How objects are made. See :func:`generate`."""

    samples: int = 1
    seed: int = 42
    multi_image: str | None = None
    background: str = BACKGROUND[0]
    device: str = "auto"
    low_memory: bool = False
    encoder: str | None = None
    largest_part: bool = False
    graphs: bool = False
    finish: Finish = field(default_factory=Finish)

    def __post_init__(self) -> None:
        for option, value, least in (("--samples", self.samples, 1), ("--seed", self.seed, 0)):
            if type(value) is not int or value < least:
                raise invalid(option, value, f"an integer from {least} on")
        if self.multi_image is not None and self.multi_image not in MODES:
            raise unknown("--multi-image", self.multi_image, MODES)
        if self.encoder is not None and not self.encoder.strip():
            raise invalid("--image-encoder", self.encoder, "a name, folder or file (leave it out for the default)")
        if self.background not in BACKGROUND:
            raise unknown("--background", self.background, BACKGROUND)


def generate(
    inputs: Any,
    *,
    student: Any = None,
    teacher: Any = None,
    steps: Any = None,
    guidance: Any = None,
    sampler: str | None = None,
    encoder: Any = None,
    samples: int = 1,
    seed: int = 42,
    multi_image: str | None = None,
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
    """Make 3-D objects from pictures or texts.

    Args:
        inputs: a picture (path or PIL), a folder of pictures, a text for a text pipeline, or a list of these.
        student: in place of the flows: a path, a shipped or a hub name, an object with ``folder`` (a run, a loaded
            student), or several of these; "none": never a student.
        teacher: pipeline folder or hub name; None: the shipped nano model.
        steps: N, or (N, M) for structure and latents; None: as the contract or ``pipeline.json`` says.
        guidance: scale, one for both stages or one for each; 1 is none.
        sampler: registered sampler, for both stages.
        encoder: name, folder or file of the picture or text encoder.
        samples: objects per input.
        seed: of the noise.
        multi_image: "stochastic" or "multidiffusion": all pictures show one object.
        background: "remove" or "keep" that of opaque pictures.
        device: auto, cpu, cuda, cuda:1, ...
        low_memory: hold one model at a time.
        graphs: keep every model on the GPU, and replay the structure stage as CUDA graphs: for many inputs.
        largest_part: keep the largest connected part of each object, without what floats beside it.
        simplify: share of each mesh's faces to remove, from 0 to below 1 (extra ``mesh``).
        texture: texels on a side of a texture in the .glb (extra ``mesh``); 0: vertex colours.
        up: the axis that points up in the .glb, "y" or "z".
        size: of the longest side in the .glb, in metres.

    Returns:
        The result of one input; a list for several inputs, a folder, or several samples. Among several inputs, those of
        which nothing can be made are left out, with a warning.

    Raises:
        FewstepError: bad input, or nothing can be made of any input.
    """
    name = None if encoder is None else str(encoder)
    how = multi_image, background, str(device), low_memory, name, largest_part, graphs
    options = Options(samples, seed, *how, Finish(simplify, texture, up, size))
    chosen = choose(models_of(teacher, student, steps, guidance, sampler))
    for line in chosen.warnings:
        warnings.warn(line, stacklevel=2)
    listed = inputs if isinstance(inputs, list | tuple) else [inputs]
    jobs = jobs_of(listed, chosen.pipeline.spec.kind, together=multi_image is not None)
    found = results_of(Generator(chosen, options), jobs)
    return as_asked(found, inputs, jobs, options)


def results_of(make: Any, jobs: Sequence[Job]) -> list[Result]:
    """What a generator makes of jobs. Among several, those of which nothing can be made are left out, with a warning.

    Raises:
        FewstepError: nothing can be made of any of them.
    """
    found: list[Result] = []
    for job in jobs:
        try:
            found += make(job)
        except Unusable as error:
            if len(jobs) == 1:
                raise
            warnings.warn(f"{job.label}: left out: {error}", stacklevel=3)
    if not found:
        raise FewstepError(f"nothing can be made of any of the {len(jobs)} inputs; the warnings say why")
    make.runner.shelf.clear()  # the flows and the encoder are done; decoders load on use
    return found


def as_asked(found: list[Result], inputs: Any, jobs: Sequence[Job], options: Options) -> Result | list[Result]:
    """The result alone, or a list for several inputs, a folder, or several samples."""
    folder = isinstance(inputs, str | Path) and os.path.isdir(inputs)
    several = options.multi_image is None and (folder or isinstance(inputs, list | tuple))
    return found[0] if options.samples == len(jobs) == 1 and not several else found


class Generator:
    """Makes the results of jobs, one at a time.

    Args:
        chosen: networks and recipes.
        options: how objects are made.

    Raises:
        FewstepError: for a device that is not there.
    """

    def __init__(self, chosen: Chosen, options: Options) -> None:
        self.options = options
        device = pick_device(options.device, "--device")
        how = device, options.low_memory, options.encoder, options.graphs
        self.runner = Runner(chosen.pipeline, chosen.recipes, chosen.students, *how)

    def __call__(self, job: Job, decode: Iterable[str] = ()) -> list[Result]:
        """One result for each sample whose structure is not empty.

        Args:
            job: what to make.
            decode: "mesh", "gaussians", "radiance": decoded now, the rest on first use.

        Raises:
            Unusable: nothing can be made of this job.
            FewstepError: a model that cannot be loaded.
        """
        runner, options, kinds = self.runner, self.options, list(decode)
        seconds: dict[str, float] = {}
        with self._timed(seconds):
            prompt = self._prompt(job)
            mode = options.multi_image or MODES[0]
            request = Request(prompt, options.samples, options.seed, mode, options.largest_part)
            objects = runner(request, [ROLES[kind] for kind in kinds])
        found = []
        for row in range(objects.layout.batch_size):
            latents, layout = objects.layout.select(objects.latents, torch.tensor([row]))
            own = dict(seconds)
            result = Result(
                job.label,
                cast(torch.Tensor, layout.coords),
                latents,
                objects.resolution,
                {
                    kind: self._decoder(role, (latents, layout), own)
                    for kind, role in ROLES.items()
                    if role in runner.pipeline.spec.models
                },
                prompt.pictures,
                own,
                objects.numbers[row],
                self._record(job, objects.numbers[row]),
                options.finish,
                {kind: self._finished(objects.decoded[ROLES[kind]][row]) for kind in kinds},
            )
            found.append(result)
        return found

    def _decoder(self, role: str, part: Any, seconds: dict[str, float]) -> Callable[[], Any]:
        def decode() -> Any:
            with self._timed(seconds):
                return self._finished(self.runner.decode(role, [part])[0])

        return decode

    def _finished(self, made: Any) -> Any:
        """What a decoder made, without floating parts where they are not wanted."""
        return largest_mesh(made) if self.options.largest_part and isinstance(made, Mesh) else made

    def _record(self, job: Job, sample: int) -> dict[str, Any]:
        """How a result was made: what its files carry."""
        runner, options = self.runner, self.options
        recipes = [runner.recipes[stage] for stage in STAGES]
        given = {"multi_image": options.multi_image, "largest_part": options.largest_part}
        return {
            "version": __version__,
            "seed": options.seed,
            "sample": sample,
            "inputs": [job.text] if job.text else [getattr(one, "name", "picture") for one in job.pictures],
            "model": _told(runner.pipeline.name),
            "students": [_told(runner.students[stage].path) if stage in runner.students else "" for stage in STAGES],
            "steps": [recipe.steps for recipe in recipes],
            "guidance": [recipe.guidance.scale for recipe in recipes],
            "samplers": [recipe.sampler for recipe in recipes],
            "options": [name for name, value in given.items() if value],
        }

    def _prompt(self, job: Job) -> Prompt:
        if job.text:
            return self.runner.prompt(lambda encoder: of_text(encoder, job.text))
        found = opened(job, self.options.background, self.options.encoder or self.runner.pipeline.spec.encoder)
        pictures = list(zip(job.names, found, strict=True))
        return self.runner.prompt(lambda encoder: of_pictures(encoder, pictures, self.options.background))

    @contextmanager
    def _timed(self, seconds: dict[str, float]) -> Iterator[None]:
        """Add the time of the block to ``seconds``, by the runner's stages."""
        clock = self.runner.clock.seconds
        before = dict(clock)
        yield
        for stage, total in clock.items():
            if (passed := total - before.get(stage, 0.0)) > 0:
                seconds[stage] = seconds.get(stage, 0.0) + passed


def _told(path: Path | str) -> str:
    """A model's path for a record; for a shipped one its name, which is the same on every machine."""
    return Path(path).name if Path(path).is_relative_to(NANO) else str(path)
