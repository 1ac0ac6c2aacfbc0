"""What ``fewstep generate`` and ``fewstep export`` do and print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewstep_shapes3d.result import GAUSSIANS, MESH, Result
from rich.console import Console
from rich.text import Text

from fewstep.cli.invocation import began
from fewstep.console import command, number_of, say, spinner
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError
from fewstep_trellis.conditioning.factory import DINO, check_image_conditioner, check_text_conditioner
from fewstep_trellis.generate.api import ROLES, Generator, Options
from fewstep_trellis.generate.inputs import TEXTS, Job, jobs_of
from fewstep_trellis.generate.models import Models, choose
from fewstep_trellis.generate.outputs import (
    DECODED,
    SUFFIXES,
    Target,
    check_free,
    formats_of,
    targets,
    write,
    write_preview,
)
from fewstep_trellis.generate.pictures import opened
from fewstep_trellis.generate.report import announce, memory_line, time_table, told, whole
from fewstep_trellis.pipeline.export import save_pipeline
from fewstep_trellis.pipeline.memory import peak_memory
from fewstep_trellis.pipeline.request import Unusable
from fewstep_trellis.pipeline.spec import STAGES, STRUCTURE_DECODER


@dataclass(frozen=True)
class Output:
    """Where results go: ``--out``, ``--formats``, whether to write a preview, to overwrite files, to print a JSON line
    for each result on standard output, and to leave out (``resume``) what has been made."""

    out: str
    formats: str | None = None
    preview: bool = True
    force: bool = False
    as_json: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if self.force and self.resume:
            raise FewstepError("--resume leaves out what has been made, and --force makes it anew: choose one")


@dataclass(frozen=True)
class Run:
    """``fewstep generate``. ``console`` is for what was done, ``errors`` for warnings and inputs that failed."""

    models: Models
    options: Options
    output: Output
    console: Console
    errors: Console
    roles: ClassVar[Mapping[str, str]] = ROLES  # of the decoders, by what they make
    about_texts: ClassVar[str] = TEXTS

    def __call__(self, inputs: Sequence[str], texts: Sequence[str]) -> int:
        """Make the objects and write them.

        Returns:
            0, or 1 where some of several inputs failed.

        Raises:
            FewstepError: bad input, before anything is written; or a single input that fails.
        """
        with told(self.errors):
            chosen = self._chosen()
            formats, planned = self._plan(chosen, inputs, texts)
            if not planned:
                return 0
            make, failed, done = self._generator(chosen), list[str](), 0
            try:
                for job, target in planned:
                    try:
                        self._one(make, job, target, formats)
                        done += 1
                    except Unusable as error:
                        if len(planned) == 1:
                            raise
                        failed.append(f"{job.label}: {error}")
            finally:  # also where a full disk or Ctrl-C ends it: what was made stays
                if done or failed:
                    self._summary(make, failed, done, len(planned))
        return 1 if failed else 0

    def dry(self, inputs: Sequence[str], texts: Sequence[str]) -> int:
        """Check everything, pictures included, and say what would be done; the codes are those of the run itself.

        Raises:
            FewstepError: as the run itself.
        """
        with told(self.errors):
            chosen, failed = self._chosen(), 0
            formats, planned = self._plan(chosen, inputs, texts)
            pick_device(self.options.device, "--device")
            chosen.pipeline.check(self._needed(chosen, formats))
            self._check_encoder(chosen.pipeline.spec)
            for job, target in planned:
                try:
                    opened(job, self.options.background, self.options.encoder or chosen.pipeline.spec.encoder)
                    say(self.console, f"would write {', '.join(map(str, self._files(target, formats)))}")
                except Unusable as error:
                    if len(planned) == 1:
                        raise
                    failed += 1
                    say(self.errors, f"would fail: {job.label}: {error}")
        return 1 if failed else 0

    def _needed(self, chosen: Any, formats: Sequence[str]) -> list[str]:
        """Roles of the models that the run loads from the pipeline."""
        flows = [role for stage, role in STAGES.items() if stage not in chosen.students]
        return [*flows, STRUCTURE_DECODER, *(self.roles[kind] for kind in decoded(formats))]

    def _check_encoder(self, spec: Any) -> None:
        check = check_image_conditioner if spec.kind == "image" else check_text_conditioner
        check(self.options.encoder or spec.encoder)

    def _generator(self, chosen: Any) -> Any:
        return Generator(chosen, self.options)

    def _choose(self) -> Any:
        return choose(self.models)

    def _chosen(self) -> Any:
        chosen = self._choose()
        announce(chosen, self.console, self.errors)
        return chosen

    def _plan(
        self, chosen: Any, inputs: Sequence[str], texts: Sequence[str]
    ) -> tuple[list[str], list[tuple[Job, Target]]]:
        """Formats, and each job with where its files go. Checked before any weights are read."""
        spec, output, together = chosen.pipeline.spec, self.output, self.options.multi_image is not None
        jobs = jobs_of(inputs, spec.kind, together=together, texts=texts, about_texts=self.about_texts)
        formats = formats_of(output.formats, output.out)
        if (given := self.options.finish.given) and "glb" not in formats:
            raise FewstepError(f"--{next(iter(given))}: changes a .glb only; got --formats {','.join(formats)}")
        found = targets(jobs, output.out, self.options.samples)
        for kind in decoded(formats):
            if (role := self.roles.get(kind, kind)) not in spec.models:
                raise FewstepError(f"--formats {','.join(formats)}: needs {role}, which {chosen.pipeline.name} lacks")
        files = {target: self._files(target, formats) for target in found}
        if output.resume:
            files = {target: paths for target, paths in files.items() if not all(path.exists() for path in paths)}
            made = number_of(len(found) - len(files), "object")
            say(self.console, f"--resume: {made} made before, {len(files)} to make")
        written = [path for paths in files.values() for path in paths]
        taken = [path for job in jobs for path in job.pictures]
        check_free(written, taken, force=output.force or output.resume)
        return formats, [(job, target) for job, target in zip(jobs, found, strict=True) if target in files]

    def _files(self, target: Target, formats: Sequence[str]) -> list[Path]:
        """The paths that a job may write."""
        seen = {MESH, GAUSSIANS} & set(decoded(formats))  # a preview shows what the formats need decoded
        previews = [target.preview] if self.output.preview and seen else []
        return target.paths([SUFFIXES[name] for name in formats]) + previews

    def _one(self, make: Any, job: Job, target: Target, formats: Sequence[str]) -> None:
        clock = make.runner.clock
        with spinner(self.console, job.label) as status:
            clock.tell = lambda text: status.update(Text(f"{job.label}: {text}"))
            results = make(job, decoded(formats))
            if self.options.finish.changes:
                with clock("finishing"):
                    for result in results:
                        _ = result.finished
            try:
                with clock("writing"):
                    written = write(results, target, formats)
            finally:  # also for files written beside a mesh without faces
                if self.output.as_json:
                    _print_lines(results, target, formats)
            with clock("preview"):
                written += write_preview(results, target) if self.output.preview else []
        voxels = ", ".join(str(len(result.coords)) for result in results)
        say(self.console, f"{job.label}: {voxels} voxels; wrote {', '.join(map(str, written))}")

    def _summary(self, make: Any, failed: Sequence[str], done: int, planned: int) -> None:
        """Times, memory, and what was not made, after everything else."""
        self.console.print(time_table(whole(make.runner.clock.seconds, began()), max(done, 1)))
        say(self.console, memory_line(peak_memory(make.runner.device), self.options.low_memory))
        for text in failed:
            say(self.errors, f"failed: {text}")
        if done < planned:
            left = planned - done - len(failed)
            say(self.errors, f"{done} made, {len(failed)} failed" + (f", {left} not tried" if left else ""))


def export(models: Models, out: Path, console: Console, errors: Console, *, half: bool = False) -> None:
    """Write a pipeline folder with students in place of its flows, and say what it holds.

    Raises:
        FewstepError: bad input; nothing is written then.
    """
    with told(errors):
        chosen = choose(models)
        announce(chosen, console, errors)
        save_pipeline(out, chosen.pipeline, chosen.students, chosen.recipes, half=half)
        spec = chosen.pipeline.spec
        if spec.kind == "image" and spec.encoder not in DINO:
            say(
                errors,
                f"warning: TRELLIS itself has no image encoder {spec.encoder!r}; fewstep generate takes the folder",
            )
    use = command("fewstep", "generate", "--teacher", out)
    say(console, f"wrote {out}: {use}, or TRELLIS's own from_pretrained({str(out)!r})")


def _print_lines(results: Sequence[Result], target: Target, formats: Sequence[str]) -> None:
    """A JSON line for each result on standard output: its files, times, counts and record."""
    for result in results:
        kinds = [name for name in formats if name != "glb" or result.mesh.success]
        files = [str(path) for name in kinds if (path := target.path(result.sample, SUFFIXES[name])).exists()]
        if files:
            seconds = {stage: round(passed, 4) for stage, passed in result.seconds.items()}
            line = {"path": files[0], "files": files, **result.record, **result.counts, "seconds": seconds}
            print(json.dumps(line), flush=True)


def decoded(formats: Sequence[str]) -> list[str]:
    """What the formats need decoded."""
    return [DECODED[name] for name in formats if name in DECODED]
