"""Where the shipped files are: the prepared set, the nano models and the students."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import FewstepError

ASSETS = Path(__file__).parent / "assets"
NANO = ASSETS / "nano"
SWEETHOME3D = ASSETS / "sweethome3d"


def shipped_students() -> dict[str, Path]:
    """Exported students that come with the package, by label."""
    return {path.parent.name: path.parent for path in sorted((NANO / "students").glob("*/config.json"))}


def existing(key: str, path: Path) -> Path:
    """``path``, when it names a checkpoint pair (stem, .json or .safetensors) or a folder.

    Raises:
        FewstepError: otherwise, naming the key of the config.
    """
    if path.exists() or path.with_suffix(".safetensors").exists():
        return path
    raise FewstepError(f"{key}: got {str(path)!r}, which does not exist; accepted: a checkpoint (json + safetensors)")
