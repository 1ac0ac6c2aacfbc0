"""What ``fewstep generate`` does."""

from __future__ import annotations

import torch
from rich.console import Console

from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError
from fewstep_trellis.conditioning import load_picture
from fewstep_trellis.generate.inputs import Job
from fewstep_trellis.generate.options import MULTI_IMAGE, Models, Options
from fewstep_trellis.generate.outputs import Target
from fewstep_trellis.generate.plan import Plan, choose, plan
from fewstep_trellis.generate.report import memory_line, say, summary, time_table, told
from fewstep_trellis.generate.write import write_objects, write_turntable
from fewstep_trellis.pipeline.memory import peak_memory
from fewstep_trellis.pipeline.objects import Request
from fewstep_trellis.pipeline.prompt import Prompt, Unusable, about_one, of_pictures, of_text
from fewstep_trellis.pipeline.run import Runner


def generate(models: Models, options: Options, console: Console, errors: Console, *, dry_run: bool = False) -> int:
    """Make objects and write them.

    Args:
        models: which networks, sampled how.
        options: of what, how many, where to.
        console: for what was done.
        errors: for warnings and for inputs that failed.
        dry_run: say what would be done, and stop.

    Returns:
        0, or 1 where some of several inputs failed.

    Raises:
        FewstepError: bad input; nothing is written then. A single input that fails is one, too.
    """
    with told(errors):
        chosen = choose(models)
        todo, device = plan(options, chosen), _device(options.device)
        for line in chosen.lines():
            say(console, line)
        for line in chosen.warnings:
            say(errors, f"warning: {line}")
        if dry_run:
            for target in todo.targets:
                say(console, f"would write {', '.join(map(str, todo.files(target)))}")
            return 0
        runner = Runner(chosen.pipeline, chosen.recipes, chosen.students, device, options.low_memory, models.encoder)
        return _all(runner, todo, options, console, errors)


def _device(name: str) -> torch.device:
    try:
        return pick_device(name)
    except FewstepError as error:
        raise FewstepError(str(error).replace("train.device", "--device")) from None


def _all(runner: Runner, todo: Plan, options: Options, console: Console, errors: Console) -> int:
    failed: list[str] = []
    for job, target in zip(todo.jobs, todo.targets, strict=True):
        try:
            _one(runner, job, target, todo, options, console)
        except Unusable as error:
            if len(todo.jobs) == 1:
                raise
            failed.append(f"{job.label}: {error}")
    done = len(todo.jobs) - len(failed)
    console.print(time_table(runner.clock.seconds, max(done, 1)))
    say(console, memory_line(peak_memory(runner.device), options.low_memory))
    summary(errors, failed, done)
    return 1 if failed else 0


def _one(runner: Runner, job: Job, target: Target, todo: Plan, options: Options, console: Console) -> None:
    with console.status(job.label) as status:
        runner.clock.tell = lambda text: status.update(f"{job.label}: {text}")
        prompt = _prompt(runner, job, options)
        request = Request(prompt, options.samples, options.seed, options.multi_image or MULTI_IMAGE[0])
        objects = runner(request, todo.decoders)
        with runner.clock("writing"):
            written = write_objects(objects, target, todo.formats)
        with runner.clock("preview"):
            preview = write_turntable(objects, prompt, target.preview) if todo.preview else None
    voxels = ", ".join(map(str, objects.layout.lengths_list))
    say(console, f"{job.label}: {voxels} voxels; wrote {', '.join(map(str, [*written, *filter(None, [preview])]))}")


def _prompt(runner: Runner, job: Job, options: Options) -> Prompt:
    if job.text:
        return runner.prompt(lambda encoder: of_text(encoder, job.text))
    with about_one():
        pictures = [(str(path), load_picture(path)) for path in job.pictures]
    return runner.prompt(lambda encoder: of_pictures(encoder, pictures, options.background))
