"""Put what was trained among the shipped models: half precision, without paths of the machine that trained it.

    python tools/ship.py RUN [--name NAME]      a student of ``fewstep distill``
    python tools/ship.py OUT                    the models that ``fewstep teach`` wrote

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
    """The run's config without paths of this machine: what they name is the package's own, or not shipped at all."""
    return {key: portable(value) if isinstance(value, dict) else value for key, value in config.items() if _kept(value)}


def _kept(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return not any(
        isinstance(part, str) and part and (Path(part).is_absolute() or Path(part).exists()) for part in parts
    )


def ship_models(folder: Path) -> None:
    """Copy the models of either stage, which teaching stores in half precision, and the description of them all."""
    for name in ("ss_encoder", "slat_encoder", *ROLES.values()):
        for suffix in (".json", ".safetensors"):
            if (file := folder / f"{name}{suffix}").is_file():
                shutil.copyfile(file, NANO / file.name)
    if (folder / PIPELINE).is_file():
        shutil.copyfile(folder / PIPELINE, NANO / PIPELINE)
    print(NANO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="folder below students/; by default the method")
    parser.add_argument("--sampler")
    chosen = parser.parse_args()
    if not (chosen.run / "student").is_dir():
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
