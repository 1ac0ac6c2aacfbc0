"""TRELLIS's fourteen published model configurations, one JSON file each: class name and constructor arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.errors import unknown
from fewstep.texts import read_json

FOLDER = Path(__file__).parent


def official_names(folder: Path = FOLDER) -> list[str]:
    """The names, as of the published checkpoints: for example "ss_flow_img_dit_L_16l8_fp16"."""
    return sorted(path.stem for path in folder.glob("*.json"))


def official_config(name: str, folder: Path = FOLDER) -> tuple[str, dict[str, Any]]:
    """Class name and constructor arguments, as ``checkpoint.build_model`` takes them, of a file of ``folder``.

    Raises:
        FewstepError: for an unknown name.
    """
    path = folder / f"{name}.json"
    if name not in official_names(folder):
        raise unknown("official configuration", name, official_names(folder))
    found = read_json(path)
    return found["name"], found["args"]
