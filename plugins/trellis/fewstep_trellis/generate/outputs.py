"""Which files a run writes: settled and checked before any work, so that nothing is overwritten by accident."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep_shapes3d.export.contact import write_sheet
from fewstep_shapes3d.result import GAUSSIANS, MESH, RADIANCE, Result, sheet

from fewstep.errors import FewstepError, invalid, unknown
from fewstep.files import Unwritable, check_place, file_suffix
from fewstep_trellis.generate.inputs import LONGEST, Job
from fewstep_trellis.pipeline.request import Unusable

SUFFIXES = {"glb": ".glb", "ply": ".ply", "npz": ".npz", "rf": ".rf.npz"}
DECODED = {"glb": MESH, "ply": GAUSSIANS, "rf": RADIANCE}  # what a format needs
PREVIEW = ".preview.png"
SUFFIXED = "a folder, or a file ending in .glb, .ply or .npz (or .rf.npz); a folder's name may end in /"


def format_of(out: str) -> str | None:
    """The format that ``--out`` names as the suffix of a file; None where it is a folder.

    Raises:
        FewstepError: for an empty name, or a suffix of no format.
    """
    if not out.strip():
        raise invalid("--out", out, f"{SUFFIXED} (for this folder: .)")
    suffix = file_suffix(out)
    if not suffix:
        return None
    if out.lower().endswith(SUFFIXES["rf"]):
        return "rf"
    if suffix not in SUFFIXES.values():
        raise invalid("--out", out, SUFFIXED)
    return suffix[1:]


def formats_of(text: str | None, out: str) -> list[str]:
    """The formats of ``--formats``, else what the suffix of ``--out`` says, else "glb".

    Raises:
        FewstepError: an unknown format, or a suffix that is none of them.
    """
    named = format_of(out)
    asked = [part.strip() for part in text.split(",")] if text is not None else [named or "glb"]
    for name in asked:
        if name not in SUFFIXES:
            raise unknown("format", name, SUFFIXES)
    if named and named not in asked:
        raise FewstepError(f"--out: got {out!r}, but --formats {','.join(asked)}; accepted: a suffix of these")
    return list(dict.fromkeys(asked))


@dataclass(frozen=True)
class Target:
    """Where the files of one job go: ``folder / (stem + suffix)``, with the sample's number where there are several.

    ``own`` is the suffix that the user gave, as spelled: "name.GLB" is written under that very name.
    """

    folder: Path
    stem: str
    samples: int
    own: str = ""

    @property
    def preview(self) -> Path:
        """The contact sheet of all samples. Never ``stem.png``: that may be the picture itself."""
        return self.folder / f"{self.stem}{PREVIEW}"

    def path(self, sample: int, suffix: str) -> Path:
        """The file of a sample (from 0) with this suffix."""
        number = f"-{sample + 1}" if self.samples > 1 else ""
        return self.folder / f"{self.stem}{number}{self.own if self.own.lower() == suffix else suffix}"

    def paths(self, suffixes: Sequence[str]) -> list[Path]:
        """All files that may be written."""
        return [self.path(sample, suffix) for sample in range(self.samples) for suffix in suffixes]


def targets(jobs: Sequence[Job], out: str, samples: int) -> list[Target]:
    """One for each job: ``out`` itself where it names a file, else files named after the jobs in the folder ``out``.

    Raises:
        FewstepError: a file name for several jobs, or no folder to write into.
    """
    place = Path(out)
    if named := format_of(out):
        if len(jobs) > 1:
            raise FewstepError(f"--out: got {out!r} for {len(jobs)} objects; accepted: a folder")
        stem = place.name[: -len(SUFFIXES[named])]
        found = [Target(place.parent, stem, samples, place.name[len(stem) :])]
    else:
        found = [Target(place, job.name, samples) for job in jobs]
    if (got := max(len(os.fsencode(part)) for part in (*place.parts, found[0].stem))) > LONGEST:
        raise FewstepError(f"--out: got a name of {got} bytes; accepted: at most {LONGEST}")
    check_place("--out", place)
    return found


def check_free(paths: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse to overwrite: an input never, another file only with ``--force``.

    Raises:
        FewstepError: naming the files.
    """
    sources = {os.path.realpath(path) for path in inputs}
    if taken := [path for path in paths if os.path.realpath(path) in sources]:
        raise FewstepError(f"--out: {taken[0]} is an input; accepted: another folder or name")
    present = [str(path) for path in paths if os.path.lexists(path)]
    if present and not force:
        more = f" and {len(present) - 3} more" if len(present) > 3 else ""
        raise FewstepError(
            f"--out: {', '.join(present[:3])}{more} exists; accepted: a new name, or --force to overwrite"
        )


def write(results: Sequence[Result], target: Target, formats: Sequence[str]) -> list[Path]:
    """Write every sample in every format.

    Raises:
        Unusable: a mesh without faces; every other file is written first, and named.
        FewstepError: a place that cannot be written.
    """
    written, faceless = [], []
    for result in results:
        for name in formats:
            path = target.path(result.sample, SUFFIXES[name])
            if name == "glb" and not result.mesh.success:
                faceless.append(str(path))
                continue
            try:
                written.append(result.save(path, name))
            except Unwritable:  # a retry must find none of this object's files in its way
                for whole in written:
                    whole.unlink(missing_ok=True)
                raise
    if faceless:
        others = f" (wrote {', '.join(map(str, written))})" if written else ""
        raise Unusable(
            f"{', '.join(faceless)}: the mesh came out without faces; try another --seed or more --steps{others}"
        )
    return written


def write_preview(results: Sequence[Result], target: Target) -> list[Path]:
    """Write a turntable of all samples; nothing if neither meshes nor Gaussians were decoded.

    Raises:
        FewstepError: a place that cannot be written.
    """
    picture = sheet(results)
    return [] if picture is None else [write_sheet(picture, target.preview)]
