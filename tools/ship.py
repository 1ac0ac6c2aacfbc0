"""Put what was trained among the shipped models: half precision, without paths of the machine that trained it.

    python tools/ship.py RUN [--name NAME]      a student of ``fewstep distill``
    python tools/ship.py OUT                    what ``fewstep teach --stage slat`` wrote: models and pipeline.json

The contract's sampler may be replaced with ``--sampler``: how a student is sampled is no part of its training.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from fewstep_trellis.normalisation import PIPELINE
from fewstep_trellis.shipped import NANO
from fewstep_trellis.teach.describe import ROLES

from fewstep.engine.export import load_student, save_student


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """The run's config without absolute paths: what they named are the defaults of the package."""
    return {key: portable(value) if isinstance(value, dict) else value for key, value in config.items() if _kept(value)}


def _kept(value: object) -> bool:
    return not (isinstance(value, str) and Path(value).is_absolute())


def ship_models(folder: Path) -> None:
    """Copy the second stage's models, which teaching stores in half precision, and the description of them all."""
    for name in ("slat_encoder", *(name for role, name in ROLES.items() if role.startswith("slat_"))):
        for suffix in (".json", ".safetensors"):
            shutil.copyfile(folder / f"{name}{suffix}", NANO / f"{name}{suffix}")
    shutil.copyfile(folder / PIPELINE, NANO / PIPELINE)
    print(NANO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="folder below students/; by default the method")
    parser.add_argument("--sampler")
    chosen = parser.parse_args()
    if (chosen.run / PIPELINE).is_file():
        ship_models(chosen.run)
        return
    student, info = load_student(chosen.run)
    config, contract = portable(info.config), info.contract
    if chosen.sampler:
        contract = contract.model_copy(update={"sampler": chosen.sampler})
        config["objective"]["sampler"] = chosen.sampler
    folder = NANO / "students" / (chosen.name or info.method)
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_student(folder, student, info.model_copy(update={"config": config, "contract": contract}), half=True)
    print(folder)


if __name__ == "__main__":
    main()
