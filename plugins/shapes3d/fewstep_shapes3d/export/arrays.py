"""What was generated as plain arrays, for other programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from fewstep_shapes3d.export.files import check_suffix, write_whole


def write_npz(arrays: dict[str, Tensor | None], path: Path) -> Path:
    """Write named tensors (None is left out) as a compressed .npz.

    Raises:
        FewstepError: for another suffix, or a place that cannot be written.
    """
    check_suffix(Path(path), ".npz")
    found = {name: value.detach().cpu().numpy() for name, value in arrays.items() if value is not None}

    def write(temp: Path) -> None:
        with temp.open("wb") as file:
            np.savez_compressed(file, **found)  # type: ignore[arg-type]

    return write_whole(Path(path), write)
