"""``fewstep.generate`` for TRELLIS: pictures or texts to 3-D objects. ``fewstep generate`` runs the same code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from fewstep_shapes3d.pictures.loading import as_rgba, load_picture
from fewstep_shapes3d.result import GAUSSIANS, MESH, RADIANCE, Result

from fewstep.engine.device import pick_device
from fewstep.errors import unknown
from fewstep_trellis.conditioning.several import MODES
from fewstep_trellis.generate.inputs import Job, jobs_of
from fewstep_trellis.generate.models import Chosen, choose, models_of
from fewstep_trellis.pipeline import spec
from fewstep_trellis.pipeline.request import Prompt, Request, about_one, of_pictures, of_text
from fewstep_trellis.pipeline.run import Runner

ROLES = {MESH: spec.MESH, GAUSSIANS: spec.GAUSSIANS, RADIANCE: spec.RADIANCE}  # by what a Result calls it
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

    def __post_init__(self) -> None:
        if self.multi_image is not None and self.multi_image not in MODES:
            raise unknown("--multi-image", self.multi_image, MODES)
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
) -> Result | list[Result]:
    """Make 3-D objects of pictures or texts.

    Args:
        inputs: a picture (path or PIL), a folder of pictures, a text for a text pipeline, or a list of these.
        student: in place of the flows: a path, a shipped or a hub name, an object with ``folder`` (a run, a loaded
            student), or several of these; "none": never a student.
        teacher: pipeline folder or hub name; None: the shipped nano model.
        steps: N, or (N, M) for structure and latents; None: as the contract or ``pipeline.json`` says.
        guidance: scale, one or two likewise; 1 is none.
        sampler: registered sampler, for both stages.
        encoder: name, folder or file of the picture or text encoder.
        samples: objects of each input.
        seed: of the noise.
        multi_image: "stochastic" or "multidiffusion": all pictures show one object.
        background: "remove" or "keep", of opaque pictures.
        device: auto, cpu, cuda, cuda:1, ...
        low_memory: hold one model at a time.

    Returns:
        The result of one input; a list for several inputs, a folder, or several samples.

    Raises:
        FewstepError: bad input, or an input of which nothing can be made.
    """
    options = Options(samples, seed, multi_image, background, str(device), low_memory, encoder and str(encoder))
    chosen = choose(models_of(teacher, student, steps, guidance, sampler))
    for line in chosen.warnings:
        warnings.warn(line, stacklevel=2)
    several = isinstance(inputs, list | tuple)
    jobs = jobs_of(inputs if several else [inputs], chosen.pipeline.spec.kind, together=multi_image is not None)
    make = Generator(chosen, options)
    found = [result for job in jobs for result in make(job)]
    make.runner.shelf.clear()  # the flows and the encoder are done; decoders load on use
    single = samples == 1 and len(jobs) == 1 and (multi_image is not None or not (several or _is_folder(inputs)))
    return found[0] if single else found


def _is_folder(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).is_dir()


class Generator:
    """Makes the results of one job after the other.

    Args:
        chosen: networks and recipes.
        options: how objects are made.

    Raises:
        FewstepError: for a device that is not there.
    """

    def __init__(self, chosen: Chosen, options: Options) -> None:
        self.options = options
        device = pick_device(options.device, "--device")
        self.runner = Runner(
            chosen.pipeline, chosen.recipes, chosen.students, device, options.low_memory, options.encoder
        )

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
            request = Request(prompt, options.samples, options.seed, options.multi_image or MODES[0])
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
                {kind: objects.decoded[ROLES[kind]][row] for kind in kinds},
            )
            found.append(result)
        return found

    def _decoder(self, role: str, part: Any, seconds: dict[str, float]) -> Callable[[], Any]:
        def decode() -> Any:
            with self._timed(seconds):
                return self.runner.decode(role, [part])[0]

        return decode

    def _prompt(self, job: Job) -> Prompt:
        if job.text:
            return self.runner.prompt(lambda encoder: of_text(encoder, job.text))
        with about_one():
            pictures = [(name, _opened(one)) for name, one in zip(job.names, job.pictures, strict=True)]
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


def _opened(picture: Any) -> Any:
    return load_picture(picture) if isinstance(picture, Path) else as_rgba(picture)
