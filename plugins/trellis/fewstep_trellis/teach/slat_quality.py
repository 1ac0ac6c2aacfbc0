"""How well the structured-latent VAE reconstructs surfaces it was not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.surface import SUBDIVISION
from fewstep_shapes3d.data.targets import CLIP, Target, load_target
from fewstep_shapes3d.mesh import extract_mesh
from fewstep_shapes3d.mesh.faces import Floats, sample, watertight, without_cavities
from fewstep_shapes3d.representations.mesh import Mesh
from torch import Tensor

from fewstep_trellis.models import SLatEncoder, SLatGaussianDecoder, SLatMeshDecoder
from fewstep_trellis.teach.crops import Crop, layout_of, whole
from fewstep_trellis.teach.slat_gs import SH0
from fewstep_trellis.teach.slat_vae import BITS, COLOUR, SDF

COUNT, CLOSE = 20000, 0.5  # points sampled on a mesh; voxels within which the F-score counts a point


@torch.no_grad()
def reconstruction(
    encoder: SLatEncoder, mesh: SLatMeshDecoder, gs: SLatGaussianDecoder, data: PreparedSet, targets: Path, most: int
) -> dict[str, float]:
    """Means over ``most`` held-out objects; distances in voxels of the structure grid, colours in [0, 1].

    ``accuracy`` is from the mesh to the true surface, ``completeness`` from what can be seen of the true surface to the
    mesh, ``chamfer`` their mean, ``f_score`` at half a voxel. Inner walls of closed solids are left out
    (``without_cavities``). Two bounds: ``exact_*`` of the mesh extracted from the true field, ``voxels_*`` of the
    voxel centres alone, what the first stage knew already. The truth is 20,000 points: some 0.15 voxels apart.
    """
    rows, device = [], encoder.out_layer.weight.device
    for index in data.test[np.linspace(0, len(data.test) - 1, min(most, len(data.test))).round().astype(int)]:
        crop, target = whole(data, targets, int(index)), load_target(targets, int(index))
        coords, layout = crop.coords, layout_of([crop])
        layout = layout.to(device)
        z = encoder(crop.features.to(device), layout)
        row = mesh_figures(mesh.decode(z, layout)[0].to("cpu"), target, data.resolution)
        exact = mesh_figures(exact_mesh(crop, data.resolution), target, data.resolution)
        row |= {f"exact_{key}": value for key, value in exact.items()}
        splats = gs.decode(z, layout)[0].to("cpu")
        colour = (splats.features_dc.reshape(-1, 3) * SH0 + 0.5).numpy()
        found = compare(splats.xyz.numpy(), colour, target, data.resolution)
        row |= {f"gs_{key}": value for key, value in found.items()}
        centres = ((coords + 0.5) / data.resolution - 0.5).numpy()
        found = compare(centres, np.full((len(centres), 3), 0.5), target, data.resolution)
        rows.append(row | {f"voxels_{key}": value for key, value in found.items() if key != "colour_error"})
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | {"objects": float(len(rows))}


def exact_mesh(crop: Crop, resolution: int) -> Mesh:
    """The mesh of the true field, with no deformation and equal weights: what a perfect decoder would give."""
    fine = SUBDIVISION * resolution
    cubes = (SUBDIVISION * crop.coords[:, None] + torch.cartesian_prod(*[torch.arange(SUBDIVISION)] * 3)).flatten(0, 1)
    side = fine + 1
    wanted, known = ((c[..., 0] * side + c[..., 1]) * side + c[..., 2] for c in (cubes[:, None] + BITS, crop.corners))
    at = torch.searchsorted(known, wanted)
    raw = torch.zeros(len(cubes), 101)
    raw[:, SDF] = crop.distance[at] / CLIP + 1 / fine
    raw[:, COLOUR] = crop.attributes.clamp(1e-3, 1 - 1e-3).logit()[at].flatten(1)
    return extract_mesh(cubes, raw, fine)


def mesh_figures(found: Mesh, target: Target, resolution: int) -> dict[str, float]:
    """The figures of one mesh, and whether every edge of it has two faces."""
    faces = found.faces.numpy()
    kept = without_cavities(found.vertices.numpy().astype(np.float64), faces)
    assert found.vertex_attrs is not None
    vertices, attributes = found.vertices.numpy().astype(np.float64), found.vertex_attrs.numpy().astype(np.float64)
    points, colour = sample(vertices, attributes[:, :3], kept, COUNT)
    return compare(points, colour, target, resolution) | {"watertight": float(watertight(faces)), "faces": len(faces)}


def compare(points: Floats, colour: Floats, target: Target, resolution: int) -> dict[str, float]:
    """Points [N,3] with colours against the true surface: accuracy to all of it, completeness over what is exposed."""
    from scipy.spatial import cKDTree  # type: ignore[import-untyped]

    truth, shown = target.points.numpy().astype(np.float64), target.exposed.numpy()
    shown = shown if shown.any() else np.ones_like(shown)
    # Shifted away from 0: with denormals flushed (torch.set_flush_denormal) cKDTree splits endlessly at 0.
    to_truth, _ = cKDTree(truth + 1).query(points + 1)
    to_points, nearest = cKDTree(points + 1).query(truth[shown] + 1)
    to_truth, to_points = to_truth * resolution, to_points * resolution
    precision, recall = (to_truth < CLOSE).mean(), (to_points < CLOSE).mean()
    return {
        "accuracy": float(to_truth.mean()),
        "completeness": float(to_points.mean()),
        "chamfer": float((to_truth.mean() + to_points.mean()) / 2),
        "f_score": float(2 * precision * recall / max(precision + recall, 1e-9)),
        "colour_error": float(np.abs(colour[nearest] - target.shade.numpy()[shown]).mean()),
    }


def channel_statistics(latents: list[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all voxels: what ``slat_normalization`` holds."""
    joined = torch.cat(latents).double()
    return [round(v, 6) for v in joined.mean(0).tolist()], [round(v, 6) for v in joined.std(0).tolist()]
