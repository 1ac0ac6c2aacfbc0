"""Writing results: beside the target and then renamed, so that a file is complete or absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import new_file


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file, then put it in place of ``path``.

    Raises:
        FewstepError: for a place that cannot be written.
    """
    with new_file(Path(path)) as temp:
        write(temp)
    return Path(path)


def check_suffix(path: Path, suffix: str) -> None:
    """Raise FewstepError unless the name ends in ``suffix``."""
    if path.suffix.lower() != suffix:
        raise FewstepError(f"output: got {str(path)!r}; accepted: a name ending in {suffix}")


def check_finite(values: Tensor, path: Path) -> None:
    """Raise FewstepError for a NaN or an infinity: other programs open such a file and show nothing."""
    if bad := int((~values.isfinite()).any(-1).sum()):
        raise FewstepError(f"{path}: {bad} of {len(values)} points are not finite, so nothing was written")
