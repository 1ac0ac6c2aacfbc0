"""How much the condition of a prepared set tells about an object's colour.

    python -m benchmarks.quality.condition [SET]

Ridge regression is fitted on the training objects, from the tokens of their first picture to the mean colour of their
voxels. Printed are its R squared and mean absolute error on the held-out objects, and the error of predicting the
training objects' mean colour. A token's last four channels are the mean colour of the object in its tile and its share
of the tile; the regression is fitted without them too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.features import COLOURS, POSITIONS
from torch import Tensor

from fewstep.errors import FewstepError

PENALTIES = tuple(10.0**power for power in range(6))  # the best on the held-out objects counts, which favours the map


def explained(known: Tensor, wanted: Tensor, count: int) -> tuple[float, float]:
    """R squared and mean absolute error of a regression of wanted [N, 3] on known [N, F], on rows from ``count`` on."""
    mean, spread = known[:count].mean(0), known[:count].std(0) + 1e-6
    x, middle = (known - mean) / spread, wanted[:count].mean(0)
    best = (-torch.inf, torch.inf)
    for penalty in PENALTIES:
        gram = x[:count].T @ x[:count] + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        found = x[count:] @ torch.linalg.solve(gram, x[:count].T @ (wanted[:count] - middle)) + middle
        left, own = wanted[count:] - found, wanted[count:] - wanted[count:].mean(0)
        best = max(best, (1 - float(left.square().sum() / own.square().sum()), float(left.abs().mean())))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", type=Path, default=SWEETHOME3D, help="default: the shipped one")
    try:
        data = PreparedSet.load(parser.parse_args().set)
        rows = [*data.train, *data.test]
        colours = torch.stack([(data.surface(int(at))[1][:, 8:].double().mean(0) + 1) / 2 for at in rows])
        tokens = data.tokens(rows)[..., :-POSITIONS].double()
    except FewstepError as wrong:
        sys.exit(f"error: {wrong}")
    count = len(data.train)
    print(f"{count} training and {len(rows) - count} held-out objects; mean colour in [0, 1]")
    print(f"mean of the training objects      error {(colours[count:] - colours[:count].mean(0)).abs().mean():.3f}")
    features = {
        "from the mean token": tokens.mean(1),
        "the same, no colours": tokens[..., :-COLOURS].mean(1),
        "from all tokens": tokens.flatten(1),
    }
    for name, known in features.items():
        fit, error = explained(known, colours, count)
        print(f"a linear map {name:<20} error {error:.3f}, R squared {fit:.2f}")


if __name__ == "__main__":
    main()
