"""Where results go: written beside the target and renamed, so that a file is whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fewstep.errors import FewstepError, invalid


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file, then put it in place of ``path``.

    Raises:
        FewstepError: for a place that cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise invalid("output", str(path), f"a place that can be written ({error.strerror})") from None
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise invalid("output", str(path), f"a place that can be written ({error.strerror})") from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def check_suffix(path: Path, suffix: str) -> None:
    """Raise FewstepError unless the name ends so."""
    if path.suffix.lower() != suffix:
        raise FewstepError(f"output: got {str(path)!r}; accepted: a name ending in {suffix}")


def check_finite(values: Tensor, path: Path) -> None:
    """Raise FewstepError where there is a NaN or an infinity: other programs open such a file and show nothing."""
    if bad := int((~values.isfinite()).any(-1).sum()):
        raise FewstepError(f"{path}: {bad} of {len(values)} points are not finite, so nothing was written")
