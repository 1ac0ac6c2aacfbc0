"""Which files a run writes: settled and checked before any work, so that nothing is overwritten by accident."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep_shapes3d.export import write_whole
from fewstep_shapes3d.result import GAUSSIANS, MESH, RADIANCE, Result, sheet

from fewstep.errors import FewstepError, invalid, unknown
from fewstep_trellis.generate.inputs import Job
from fewstep_trellis.pipeline.request import Unusable

SUFFIXES = {"glb": ".glb", "ply": ".ply", "npz": ".npz", "rf": ".rf.npz"}
DECODED = {"glb": MESH, "ply": GAUSSIANS, "rf": RADIANCE}  # what a format needs
PREVIEW = ".preview.png"


def formats_of(text: str | None, out: Path) -> list[str]:
    """The formats of ``--formats``, else what the suffix of ``--out`` says, else "glb".

    Raises:
        FewstepError: an unknown format, one twice, or a suffix that is none of them.
    """
    suffix = "" if out.is_dir() else out.suffix.removeprefix(".").lower()
    if suffix and suffix not in SUFFIXES:
        raise invalid("--out", str(out), "a folder, or a file ending in .glb, .ply or .npz")
    asked = [part.strip() for part in text.split(",")] if text is not None else [suffix or "glb"]
    for name in asked:
        if name not in SUFFIXES:
            raise unknown("format", name, SUFFIXES)
    if suffix and suffix not in asked:
        raise FewstepError(f"--out: got {str(out)!r}, but --formats {','.join(asked)}; accepted: a suffix of these")
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class Target:
    """Where the files of one job go: ``folder / (stem + suffix)``, with the sample's number where there are several."""

    folder: Path
    stem: str
    samples: int

    @property
    def preview(self) -> Path:
        """The contact sheet of all samples. Never ``stem.png``: that may be the picture itself."""
        return self.folder / f"{self.stem}{PREVIEW}"

    def path(self, sample: int, suffix: str) -> Path:
        """The file of a sample (from 0) with this suffix."""
        number = f"-{sample + 1}" if self.samples > 1 else ""
        return self.folder / f"{self.stem}{number}{suffix}"

    def paths(self, suffixes: Sequence[str]) -> list[Path]:
        """All files that may be written."""
        return [self.path(sample, suffix) for sample in range(self.samples) for suffix in suffixes]


def targets(jobs: Sequence[Job], out: Path, samples: int) -> list[Target]:
    """One for each job: ``out`` itself where it names a file, else files named after the jobs in the folder ``out``.

    Raises:
        FewstepError: a file name for several jobs, two jobs of one name, or no folder to write into.
    """
    if out.suffix and not out.is_dir():
        if len(jobs) > 1:
            raise FewstepError(f"--out: got {str(out)!r} for {len(jobs)} objects; accepted: a folder")
        found = [Target(out.parent, out.stem, samples)]
    else:
        found = [Target(out, job.name, samples) for job in jobs]
    if len({target.stem for target in found}) < len(found):
        raise FewstepError("two texts give the same file name; accepted: one run for each")
    above = next(parent for parent in (found[0].folder.absolute(), *out.absolute().parents) if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise FewstepError(f"--out: got {str(out)!r}; accepted: a path to write to ({above} is no writable folder)")
    return found


def check_free(paths: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse to overwrite: an input never, another file only with ``--force``.

    Raises:
        FewstepError: naming the files.
    """
    sources = {path.resolve() for path in inputs}
    if taken := [path for path in paths if path.resolve() in sources]:
        raise FewstepError(f"--out: {taken[0]} is an input; accepted: another folder or name")
    present = [str(path) for path in paths if path.exists()]
    if present and not force:
        more = f" and {len(present) - 3} more" if len(present) > 3 else ""
        raise FewstepError(
            f"--out: {', '.join(present[:3])}{more} exists; accepted: a new name, or --force to overwrite"
        )


def write(results: Sequence[Result], target: Target, formats: Sequence[str]) -> list[Path]:
    """Write every sample in every format.

    Raises:
        Unusable: a mesh without faces; every other file is written first.
        FewstepError: a place that cannot be written.
    """
    written, faceless = [], []
    for result in results:
        for name in formats:
            path = target.path(result.sample, SUFFIXES[name])
            if name == "glb" and not result.mesh.success:
                faceless.append(str(path))
            else:
                written.append(result.save(path))
    if faceless:
        raise Unusable(f"{', '.join(faceless)}: the mesh came out without faces; try another --seed or more --steps")
    return written


def write_preview(results: Sequence[Result], target: Target) -> list[Path]:
    """Write a turntable of all samples; nothing where nothing was decoded to look at.

    Raises:
        FewstepError: a place that cannot be written.
    """
    picture = sheet(results)
    return [] if picture is None else [write_whole(target.preview, picture.save)]
