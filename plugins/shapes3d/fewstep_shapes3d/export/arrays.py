"""Generated objects as plain arrays, for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep_shapes3d.export.files import check_suffix, write_whole


def write_npz(arrays: dict[str, Tensor | None], path: Path, record: Mapping[str, Any] | None = None) -> Path:
    """Write named tensors (None is left out) as a compressed .npz.

    A ``record`` of how they were made becomes further entries, whose names are listed in the entry "record".

    Raises:
        FewstepError: for another suffix, or a place that cannot be written.
    """
    check_suffix(Path(path), ".npz")
    found: dict[str, Any] = {k: value.detach().cpu().numpy() for k, value in arrays.items() if value is not None}
    if record:
        found |= {**{key: np.array(value) for key, value in record.items()}, "record": np.array(list(record))}
    return write_whole(Path(path), lambda temp: np.savez_compressed(temp, **found))
