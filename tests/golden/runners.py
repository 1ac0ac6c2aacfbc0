"""What each model class is run on, and the values that its records name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from fewstep_shapes3d.mesh import corner_grid
from fewstep_shapes3d.sparse.geometry import coords_of
from fewstep_trellis.models import (
    SLatEncoder,
    SLatFlowModel,
    SLatGaussianDecoder,
    SLatMeshDecoder,
    SLatRadianceFieldDecoder,
    SparseStructureEncoder,
    occupied_coords,
)
from torch import Tensor, nn

from fewstep.core.layout import Packed

Tensors = dict[str, Tensor]
GAUSSIAN_FIELDS = {
    "_xyz": "raw_xyz",
    "_features_dc": "features_dc",
    "_scaling": "raw_scaling",
    "_rotation": "raw_rotation",
    "_opacity": "raw_opacity",
    "get_xyz": "xyz",
    "get_scaling": "scaling",
    "get_rotation": "rotation",
    "get_opacity": "opacity",
}
FIELD_FIELDS = {name: name for name in ("position", "trivec", "density", "features_dc", "depth")}


def voxels(coords: Tensor, batch_size: int | None = None) -> Packed:
    """The layout of rows (sample, x, y, z)."""
    return Packed.of_index(coords[:, 0], coords[:, 1:], batch_size)


def rows_of(layout: Packed) -> Tensor:
    """The rows (sample, x, y, z) of a layout."""
    return torch.cat([layout.index[:, None], coords_of(layout)], 1)


def _structure_flow(model: nn.Module, given: Tensors) -> Tensors:
    return {"y": model(given["x"], given["t"], given["cond"])}


def _posterior(run: Callable[..., Any], given: Tensors, plain: str) -> Tensors:
    z, mean, logvar = run(return_raw=True)
    found = {plain: z, "mean": mean, "logvar": logvar}
    if "eps" in given:
        with torch.random.fork_rng():
            found["z_sampled_with_eps"] = run(sample_posterior=True, noise=given["eps"])
    return found


def _structure_encoder(model: nn.Module, given: Tensors) -> Tensors:
    encoder = cast(SparseStructureEncoder, model)
    return _posterior(lambda **more: encoder(given["x"], **more), given, "z")


def _structure_decoder(model: nn.Module, given: Tensors) -> Tensors:
    y = model(given["z"])
    return {"y": y, "occupied_coords": occupied_coords(y)}


def _slat_flow(model: nn.Module, given: Tensors) -> Tensors:
    flow, layout = cast(SLatFlowModel, model), voxels(given["coords"], len(given["t"]))
    levels = flow.poolings(layout)
    out = flow(given["feats"], given["t"], given["cond"], layout)
    return {"feats": out, "coords_torso": rows_of(levels[-1].coarse if levels else layout)}


def _slat_encoder(model: nn.Module, given: Tensors) -> Tensors:
    encoder, layout = cast(SLatEncoder, model), voxels(given["coords"])
    return _posterior(lambda **more: encoder(given["feats"], layout, **more), given, "z")


def _fields(representations: list[Any], names: dict[str, str]) -> Tensors:
    return {
        f"rep{i}.{name}": getattr(one, ours) for i, one in enumerate(representations) for name, ours in names.items()
    }


def _gaussians(model: nn.Module, given: Tensors) -> Tensors:
    decoder, layout = cast(SLatGaussianDecoder, model), voxels(given["coords"])
    raw = decoder(given["feats"], layout)
    return {"raw": raw} | _fields(decoder.representations(raw, layout), GAUSSIAN_FIELDS)


def _radiance(model: nn.Module, given: Tensors) -> Tensors:
    decoder, layout = cast(SLatRadianceFieldDecoder, model), voxels(given["coords"])
    raw = decoder(given["feats"], layout)
    return {"raw": raw} | _fields(decoder.representations(raw, layout), FIELD_FIELDS)


def _mesh(model: nn.Module, given: Tensors) -> Tensors:
    decoder = cast(SLatMeshDecoder, model)
    raw, fine = decoder(given["feats"], voxels(given["coords"]))
    found = {"raw": raw, "coords": rows_of(fine)}
    cubes = zip(coords_of(fine).split(fine.lengths_list), raw.split(fine.lengths_list), strict=True)
    for i, (coords, feats) in enumerate(cubes):
        grid = corner_grid(coords, feats, 4 * decoder.resolution)
        corners = {"vert_coords": grid.coords, "vert_attrs": grid.attrs, "vert_pos": grid.positions}
        corners["cube_weights"] = decoder.split_fields(feats)["weights"]
        found |= {f"rep{i}.{name}": value for name, value in corners.items()}
    return found


RUNNERS: dict[str, Callable[[nn.Module, Tensors], Tensors]] = {
    "SparseStructureFlowModel": _structure_flow,
    "SparseStructureEncoder": _structure_encoder,
    "SparseStructureDecoder": _structure_decoder,
    "SLatFlowModel": _slat_flow,
    "SLatEncoder": _slat_encoder,
    "SLatGaussianDecoder": _gaussians,
    "SLatRadianceFieldDecoder": _radiance,
    "SLatMeshDecoder": _mesh,
}
"""By class: from the inputs of a record to its outputs, and to intermediate values that no module puts out."""
