"""How an object was made, as stored in its files: seed, model, steps, guidance, version."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.errors import invalid
from fewstep_shapes3d.export.glb import read_tree
from fewstep_shapes3d.export.ply import COMMENT

KEYS = "record"  # in an .npz: the names of the entries that belong to the record


def read_record(path: str | Path) -> dict[str, Any]:
    """What a result's file says about how it was made; empty if it says nothing.

    Args:
        path: a .glb (``asset.extras``), an .npz (its entries of these names) or a .ply (a comment in JSON).

    Returns:
        "version" of fewstep, "seed", "sample" (from 0), "inputs", "model", and by stage (structure, latents)
        "students", "steps", "guidance", "samplers"; "options" that change the object, where any were given.

    Raises:
        FewstepError: no such file, another kind, or a damaged one.
    """
    path = Path(path)
    readers = {".glb": _of_glb, ".npz": _of_npz, ".ply": _of_ply}
    reader = readers.get(path.suffix.lower())
    if reader is None or not path.is_file():
        raise invalid("file", str(path), f"a file that exists, ending in {', '.join(readers)}")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, struct.error, zipfile.BadZipFile) as error:
        raise invalid("file", str(path), f"a whole {path.suffix} file ({error})") from None


def _of_glb(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_tree(path)["asset"].get("extras", {})
    return found


def _of_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name].tolist() for name in arrays.get(KEYS, np.array([])).tolist()}


def _of_ply(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        for line in iter(file.readline, b""):
            text = line.decode("utf-8", "replace").strip()
            if text.startswith(f"comment {COMMENT}"):
                found: dict[str, Any] = json.loads(text.removeprefix(f"comment {COMMENT}"))
                return found
            if text == "end_header":
                break
    return {}
