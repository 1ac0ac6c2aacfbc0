"""Reading the files of a prepared set and checking them against each other; errors name the file and the remedy."""

from __future__ import annotations

import csv
import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import FewstepError, invalid, nearest
from fewstep.texts import read_json, read_text
from fewstep_shapes3d.data.clusters import LEFT_OUT, TRAIN
from fewstep_shapes3d.data.setfiles import ARRAYS, FORMAT, MANIFEST, TABLE, VERSION
from fewstep_shapes3d.measures.features import TOKENS, WIDTH

HOW = (
    "make one with: fewstep data prepare meshes --source DIR --out DIR (or from another source: furniture, sweethome3d)"
)
NAMED = 20  # left-out objects that have a line of their own
Arrays = dict[str, npt.NDArray[Any]]


def broken(path: Path, why: object) -> FewstepError:
    """The error for a file that is there but cannot be used, or is missing from a set."""
    return FewstepError(f"prepared set: {path} cannot be used: {why}; {HOW}")


def read_manifest(folder: Path, key: str = "data.root") -> dict[str, Any]:
    """The manifest of a set.

    Args:
        key: what the user gave the folder as, for the message.

    Raises:
        FewstepError: there is no such set, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        why = f"this folder has no {MANIFEST}" if folder.is_dir() else "there is no folder of this name"
        close = nearest(folder.name, (found.parent.name for found in folder.parent.glob(f"*/{MANIFEST}")))
        hint = f"; did you mean {str(folder.with_name(close))!r}?" if close else ""
        raise invalid(key, str(folder), f"a prepared set, and {why}; {HOW}{hint}")
    try:
        manifest = read_json(path)
    except FewstepError as error:
        raise broken(path, error) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise broken(path, f"it does not describe a {FORMAT}")
    if manifest.get("version") != VERSION:
        raise broken(path, f"it has version {manifest.get('version')!r}, this fewstep reads {VERSION}")
    return manifest


def read_arrays(folder: Path, name: str = ARRAYS) -> Arrays:
    """The arrays. Raises FewstepError if the file is missing, damaged or truncated."""
    path = folder / name
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise broken(path, "it is missing") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise broken(path, f"damaged or cut short ({error})") from error


def check(folder: Path, manifest: dict[str, Any], arrays: Arrays) -> None:
    """Check the arrays against the manifest. Raises FewstepError if one is missing or has another shape."""
    try:
        n, r, v, c = manifest["counts"]["objects"], manifest["resolution"], manifest["views"], manifest["channels"]
    except (KeyError, TypeError) as error:
        raise broken(folder / MANIFEST, f"it gives no {error}") from error
    shapes = {"occupancy": (n, -(-(r**3) // 8)), "tokens": (n, v, 2, TOKENS, c), "token_scale": (c,), "split": (n,)}
    shapes |= {"pca_mean": (WIDTH,), "pca_basis": (WIDTH, c)}
    for key, shape in shapes.items():
        if key not in arrays or arrays[key].shape != shape:
            got = arrays[key].shape if key in arrays else "nothing"
            raise broken(folder / ARRAYS, f"{key} should have shape {shape} by the {MANIFEST}, found {got}")
        if arrays[key].dtype.kind not in "iuf" or not np.isfinite(arrays[key]).all():
            raise broken(folder / ARRAYS, f"{key} of type {arrays[key].dtype} holds values that are not finite numbers")


def leave_out(arrays: Arrays, table: Sequence[dict[str, str]]) -> list[str]:
    """Take training objects without voxels, or with a picture without tokens, out of the split; a line for each."""
    train = arrays["split"] == TRAIN
    empty, blank = ~arrays["occupancy"].any(1), ~arrays["tokens"].any((-1, -2)).reshape(len(train), -1).all(1)
    reasons = ((empty, "it has no voxel"), (blank & ~empty, "a picture has no tokens"))
    found = [(int(row), why) for bad, why in reasons for row in np.flatnonzero(bad & train)]
    arrays["split"][[row for row, _ in found]] = LEFT_OUT
    lines = [f"warning: object {row}, {table[row]['name']!r}: {why}; left out" for row, why in found]
    return lines if len(lines) <= NAMED else [*lines[:NAMED], f"warning: {len(lines)} objects left out in all"]


def read_table(folder: Path, count: int) -> list[dict[str, str]]:
    """The rows of the table. Raises FewstepError if it is missing, damaged, or does not have ``count`` rows."""
    path = folder / TABLE
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (FewstepError, csv.Error) as error:
        raise broken(path, error) from error
    if len(rows) != count:
        raise broken(path, f"it has {len(rows)} rows for {count} objects")
    return rows
