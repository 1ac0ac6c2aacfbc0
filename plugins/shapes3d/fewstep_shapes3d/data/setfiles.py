"""The files of a prepared set: their names, what is in them, how they are written."""

from __future__ import annotations

import csv
import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.files import sha256
from fewstep_shapes3d.data.clusters import SPLITS, Ints
from fewstep_shapes3d.data.jobs import Made
from fewstep_shapes3d.data.sh3f import Skipped, licence_text
from fewstep_shapes3d.measures import features

FORMAT = "fewstep-prepared-set"
VERSION = 2
MANIFEST, TABLE, ARRAYS, PICTURES, CREDITS = "manifest.json", "objects.csv", "objects.npz", "pictures.png", "CREDITS.md"
SURFACE = "surface.npz"
COLUMNS = ("index", "name", "category", "creator", "licence", "file", "model", "cluster", "split", "voxels", "cameras")
PICTURE, ACROSS = 112, 12
CATALOGUES = (
    "Derived from the 3-D models of the Sweet Home 3D furniture catalogues (http://www.sweethome3d.com, collected",
    "and converted by Emmanuel Puybaret / eTeks). The models were turned into voxel grids, pictures and picture",
    "features. CC-BY 3.0: http://creativecommons.org/licenses/by/3.0/, CC-BY 3.0 US:",
    "http://creativecommons.org/licenses/by/3.0/us/, CC0 1.0: http://creativecommons.org/publicdomain/zero/1.0/",
)


def manifest(
    files: Sequence[Path],
    skipped: Sequence[Skipped],
    labels: Ints,
    codes: npt.NDArray[np.uint8],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The manifest's content: how the set was made, and how many objects it has."""
    counts = {"objects": len(codes), "clusters": len(np.unique(labels)), "skipped": len(skipped)}
    counts |= {name.replace(" ", "_"): int((codes == code).sum()) for code, name in enumerate(SPLITS)}
    return {
        "format": FORMAT,
        "version": VERSION,
        **settings,
        "encoder": features.ENCODER,
        "axes": "occupancy is indexed (x, y, z), z up, front towards -y; flip mirrors x",
        "counts": counts,
        "sources": [{"file": path.name, "sha256": sha256(path)} for path in files],
        "skipped": [{"what": bad.what, "reason": bad.reason} for bad in skipped],
        "packages": {name: _version(name) for name in ("fewstep", "open3d-cpu", "trimesh", "numpy", "torch", "pillow")}
        | {"python": platform.python_version()},
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Add the size and digest of the other files, then write ``manifest.json``."""
    content["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(path: Path, made: Sequence[Made], labels: Ints, codes: npt.NDArray[np.uint8]) -> None:
    """One row per object, in the order of the arrays; cameras as ``azimuth/elevation`` in degrees."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index, item in enumerate(made):
            e, voxels = item.entry, int(np.unpackbits(item.bits).sum())
            cameras = " ".join(f"{azimuth:.2f}/{elevation:.2f}" for azimuth, elevation in item.cameras)
            row = (index, e.name, e.category, e.creator, e.licence, e.archive.name, e.model)
            writer.writerow((*row, int(labels[index]), SPLITS[codes[index]], voxels, cameras))


def write_pictures(path: Path, made: Sequence[Made]) -> None:
    """One atlas: the condition picture of each held-out object (view 0, on black), 112x112, twelve to a row."""
    from PIL import Image

    rows = max(1, -(-len(made) // ACROSS))
    atlas = Image.new("RGB", (ACROSS * PICTURE, rows * PICTURE))
    for at, item in enumerate(made):
        tile = Image.fromarray(features.preprocess(Image.fromarray(item.pictures[0])))
        small = tile.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
        atlas.paste(small, (at % ACROSS * PICTURE, at // ACROSS * PICTURE))
    atlas.save(path, optimize=True)


def write_credits(path: Path, made: Sequence[Made], files: Sequence[Path]) -> None:
    """Every creator with licence and names of the objects, and the catalogues' own licence texts.

    CC-BY asks this of everyone who distributes the set.
    """
    owned: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for item in made:
        owned[(item.entry.archive.name, item.entry.licence, item.entry.creator)].append(item.entry.name)
    lines = ["# Credits", "", *(CATALOGUES if files else ())]
    heading = ("", "")
    for (file, licence, creator), names in sorted(owned.items()):
        if heading != (file, licence):
            heading = (file, licence)
            lines += ["", f"## {file}: {licence}", ""]
        lines.append(f"- **{creator}**: {', '.join(sorted(names))}")
    for source in files:
        text = [line.strip() for line in licence_text(source).splitlines()]
        lines += ["", f"## {source.name}: its LICENSE.TXT", "", "```", *text, "```"] if text else []
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
