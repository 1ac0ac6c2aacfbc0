"""Folders of mesh files to a data root in TRELLIS's own layout, for training at full size."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fewstep_shapes3d.data.jobs import Progress, in_processes
from fewstep_shapes3d.data.meshfiles import UpChoice, find_meshes
from fewstep_shapes3d.data.newset import check_limit, spread
from fewstep_shapes3d.data.sh3f import Skipped

from fewstep.console import Console, say
from fewstep.engine.device import pick_device
from fewstep.errors import FewstepError, invalid, need
from fewstep.files import check_place, sha256, write_file, write_json
from fewstep.texts import read_json
from fewstep_trellis.official.files import CONDITION_VIEWS, LATENTS, STRUCTURE, VIEWS, VOXELS, ItemError
from fewstep_trellis.official.table import NAME, Row
from fewstep_trellis.official.vae import surface_grid
from fewstep_trellis.prepare.latents import Kind, structure_latents, structured_latents
from fewstep_trellis.prepare.objects import Found, Pictures, make_files

RECORD = "fewstep.json"
NO_ENCODERS = "none"
SCORE = 10.0  # the best aesthetic_score: whoever prepares a folder has chosen what is in it
Skips = list[Skipped]


def prepare_official(
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    encoders: str = NO_ENCODERS,
    image_encoder: str = "",
    up: UpChoice = "auto",
    pictures: Pictures | None = None,
    limit: int | None = None,
    workers: int = 2,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read folders of mesh files and write a data root to ``out``: voxels, pictures, latents and ``metadata.csv``.

    Existing files are kept, so a call after an interruption goes on where that one stopped, and a later call with
    encoders adds the latents.

    Args:
        source: a folder that holds mesh files at any depth, or one or several files or folders.
        out: the folder to make, or one that an earlier call with the same settings made.
        encoders: folder or hub repository with the encoders of both stages; "none": no latents are written.
        image_encoder: makes the image features that second-stage latents are encoded from; "": latents of the first
            stage only.
        up: the axis that points up in all files: "y", "z", or by default that of their format.
        pictures: how many, and how large. Without features, latents of the second stage cannot be encoded.
        limit: read only this many files, evenly spread: for a trial.
        workers: processes.
        device: where latents are encoded.
        progress: called as ``progress(done, total, name)`` after each object, anew for each kind of latents.

    Returns:
        What is written to ``fewstep.json``: settings, ``counts`` of ``objects`` and of files ``skipped``, and which.

    Raises:
        FewstepError: nothing to read, ``out`` was made with other settings, encoders that cannot be loaded, or a value
            out of range. Unusable files are no error: each is printed on one line and listed in ``fewstep.json``.
    """
    root, wanted = Path(out), pictures or Pictures()
    for package in ("open3d", "trimesh"):
        need(package)  # once, here: later it would be a reason to skip each object
    check_limit(limit)
    for name, value, least in (("views", wanted.conditions, 1), ("workers", workers, 1)):
        if value < least:
            raise invalid(name, value, f"{least} or more")
    place, tell = pick_device(device, "--device"), progress or (lambda done, total, name: None)
    kinds = list[Kind]()  # first of all, since the encoders may be missing
    if encoders != NO_ENCODERS:
        kinds.append(structure_latents(encoders, place))
        if image_encoder:
            kinds.append(structured_latents(encoders, image_encoder, place))
    entries = spread(find_meshes(source, up), limit)
    settings = {"up": up, **asdict(wanted)}
    del settings["features"]  # pictures for the second stage may be added later
    _claim(root, settings)
    found, skipped = _distinct([Found(entry, sha256(entry.archive / entry.model)) for entry in entries])
    job = partial(make_files, root=root, pictures=wanted)
    with closing(in_processes(job, found, workers)) as results:
        for done, (bad, one) in enumerate(zip(results, found, strict=True), 1):
            tell(done, len(found), one.entry.name)
            if bad is not None:
                skipped.append(bad)
    console = Console()
    for bad in skipped:
        say(console, f"skipped {bad.what}: {bad.reason}")
    rows = [row for one in found if (row := _row(one, root)) is not None]
    if not rows:
        raise FewstepError(f"{root}: none of {len(entries)} mesh files is usable; accepted: at least one")
    counts = {"objects": len(rows), "skipped": len(skipped)}
    record = {**settings, "counts": counts, "skipped": [asdict(bad) for bad in skipped]}
    write_json(root / RECORD, record)
    _write_table(root, rows)
    for kind in kinds:
        _encode(kind, root, rows, tell)
    return record


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or go on with one that was made with these settings."""
    if not root.exists():
        check_place("--out", root)
        write_json(root / RECORD, settings)
        return
    if not (root / RECORD).is_file():
        raise invalid("--out", str(root), f"a folder that does not exist yet, or one with a {RECORD} to go on with")
    before = read_json(root / RECORD)
    changed = [f"{key} {before.get(key)}, now {value}" for key, value in settings.items() if before.get(key) != value]
    if changed:
        raise invalid("--out", str(root), f"the settings it was made with ({'; '.join(changed)}), or another folder")


def _distinct(found: Sequence[Found]) -> tuple[list[Found], Skips]:
    """Each object once, by its file's content."""
    first: dict[str, Found] = {}
    twice = Skips()
    for one in found:
        if (same := first.setdefault(one.sha256, one)) is not one:
            entry = one.entry
            what = f"{entry.archive.name}: {entry.name} ({entry.model})"
            twice.append(Skipped(what, f"the same file as {same.entry.model}"))
    return list(first.values()), twice


def _row(found: Found, root: Path) -> Row | None:
    """The table's row of an object whose files are there."""
    entry, name = found.entry, found.sha256
    if not (root / VOXELS / f"{name}.ply").exists():
        return None
    cells: dict[str, Any] = {
        "sha256": name,
        "file_identifier": entry.model,
        "aesthetic_score": SCORE,
        "captions": "",
        "local_path": entry.archive / entry.model,
        "rendered": (root / VIEWS / name).exists(),
        "voxelized": True,
        "cond_rendered": (root / CONDITION_VIEWS / name).exists(),
    }
    row = Row(root, 0, {key: str(value) for key, value in cells.items()})
    return Row(root, 0, {**row.cells, "num_voxels": str(int(surface_grid(row).sum()))})


def _write_table(root: Path, rows: Sequence[Row]) -> None:
    """``metadata.csv``, with a column for each kind of latents that there is."""
    kinds: dict[str, Path] = {}
    for folder, prefix in ((STRUCTURE, "ss_latent"), (LATENTS, "latent")):
        kinds |= {f"{prefix}_{path.name}": path for path in sorted((root / folder).glob("*"))}
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0].cells, *kinds], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        flags = {column: (path / f"{row.sha256}.npz").exists() for column, path in kinds.items()}
        writer.writerow({**row.cells, **flags})
    write_file(root / NAME, text.getvalue())


def _encode(kind: Kind, root: Path, rows: Sequence[Row], tell: Progress) -> None:
    console = Console()
    for done, row in enumerate(rows, 1):
        try:
            kind.write(row)
        except ItemError as error:
            say(console, f"{kind.folder}: {error}")
        tell(done, len(rows), f"{Path(kind.folder).parts[0]} of {row.cells['file_identifier']}")
    _write_table(root, rows)
