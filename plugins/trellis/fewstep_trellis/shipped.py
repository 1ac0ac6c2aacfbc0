"""Where the shipped files are: the nano models and the students."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fewstep.errors import FewstepError

ASSETS = Path(__file__).parent / "assets"
NANO = ASSETS / "nano"
SLAT = "slat-"  # before the label of a second stage's student
PREFERRED = "mdt-vd"  # which student `fewstep generate` takes where several were made for the steps asked for


def shipped_students(stage: str = "ss") -> dict[str, Path]:
    """Exported students of a stage ("ss" or "slat") that come with the package, by label."""
    found = {path.parent.name: path.parent for path in sorted((NANO / "students").glob("*/config.json"))}
    slat = {name.removeprefix(SLAT): folder for name, folder in found.items() if name.startswith(SLAT)}
    return slat if stage == "slat" else {name: folder for name, folder in found.items() if not name.startswith(SLAT)}


def student_for(stage: str, steps: int) -> Path | None:
    """The folder of a shipped student of this stage whose contract holds ``steps``; None where there is none."""
    from fewstep.engine.export import read_info  # imports torch

    fitting = {name: path for name, path in shipped_students(stage).items() if steps in read_info(path).contract.steps}
    return fitting.get(PREFERRED) or next(iter(fitting.values()), None)


def existing(key: str, path: Path) -> Path:
    """``path``, when it names a checkpoint pair (stem, .json or .safetensors) or a folder; owner/repository/path/of/a
    pair on the hub is fetched, with the repository's ``pipeline.json``.

    Raises:
        FewstepError: otherwise, naming the key of the config.
    """
    if is_here(key, path):
        return path
    try:
        return _fetched(path)
    except FewstepError as error:
        raise FewstepError(f"{key}: got {str(path)!r}, which does not exist here; {error}") from None


def is_here(key: str, path: Path) -> bool:
    """Whether ``path`` names a checkpoint pair or a folder on this machine, and not one on the hub.

    Raises:
        FewstepError: for what can be neither, naming the key of the config.
    """
    from fewstep_trellis.weightfiles import split_key, tensor_file  # imports torch

    if os.path.exists(path) or os.path.exists(tensor_file(split_key(path)[0])):  # unlike Path.exists, for any text
        return True
    if len(path.parts) > 2 and not path.is_absolute() and not os.path.exists(path.parts[0]):
        return False
    raise FewstepError(
        f"{key}: got {str(path)!r}, which does not exist; accepted: a checkpoint (json + safetensors), or "
        "owner/repository/path/of/one on the hub"
    )


def _fetched(path: Path) -> Path:
    from fewstep_trellis.normalisation import PIPELINE
    from fewstep_trellis.pipeline.source import Absent, Repository, checkpoint

    place = Repository("/".join(path.parts[:2]))
    with suppress(Absent):
        place.fetch(PIPELINE)
    return checkpoint(place, "/".join(path.parts[2:]))
