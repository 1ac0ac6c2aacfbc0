"""Cases of mesh extraction: faces and their owners to the letter, vertices and attributes as numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from fewstep_shapes3d.mesh import extract_mesh
from fewstep_shapes3d.mesh.grid import corner_grid
from fewstep_shapes3d.mesh.surface import surface
from fewstep_shapes3d.representations import Mesh
from torch import Tensor

from fewstep.errors import FewstepError
from golden.cases import Case, Check, Record, compare, exact, label, tensors_of

ABSOLUTE = 1e-6
TERMS = {"deviation": ("l_dev_mean", 0.5), "weights": ("weights_abs_mean", 0.2), "consistency": ("consistency", 1.0)}
Tensors = dict[str, Tensor]


def _input(root: Path, record: Record, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Cubes [N, 3] and features, from the record's own tensors or from the model case that it names."""
    if "input.coords" in tensors:
        return tensors["input.coords"][:, -3:], tensors["input.feats"].float()
    source, _, rest = record["input"].partition(".safetensors")
    sample = int(rest.partition("sample ")[2].split()[0])
    path = (root / source).with_suffix(".json")
    if not path.with_suffix(".safetensors").is_file():
        raise FewstepError(f"golden record: {path.with_suffix('.safetensors')} is named by a mesh record, and missing")
    given = tensors_of(path)
    rows = given["output.coords"][:, 0] == sample
    return given["output.coords"][rows, 1:], given["output.raw"][rows]


def _absolute(what: str, ours: Tensor, theirs: Tensor) -> Check:
    """An absolute difference: these are lengths in a cube of side 1."""
    if ours.shape != theirs.shape:
        return exact(what, False)
    error = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
    return Check(what, error, ABSOLUTE)


def _canonical(mesh: Mesh, owners: Tensor) -> tuple[Tensor, Tensor]:
    """The order of vertices by (cube, slot), and faces in that numbering, smallest index first, rows sorted."""
    order = torch.argsort(owners[:, 0] * 8 + owners[:, 1])
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    faces = number[mesh.faces]
    first = faces.argmin(1)
    faces = torch.stack([faces.gather(1, ((first + i) % 3)[:, None])[:, 0] for i in range(3)], 1)
    size = max(1, len(order))
    return order, faces[torch.argsort((faces[:, 0] * size + faces[:, 1]) * size + faces[:, 2])]


def _topology(mesh: Mesh, tensors: Tensors) -> list[Check]:
    found = {"output.faces": mesh.faces, "output.vertex_cube": mesh.vertex_cube}
    if "canon.faces" in tensors and mesh.vertex_cube is not None:
        found["canon.order"], found["canon.faces"] = _canonical(mesh, mesh.vertex_cube)
        # The order of the rows is free where a canonical one is recorded.
        found.pop("output.faces")
    return [
        exact(name, value is not None and torch.equal(value.long(), tensors[name].long()))
        for name, value in found.items()
        if name in tensors
    ]


def _solid(mesh: Mesh, record: Record) -> list[Check]:
    """The recorded volume, how many edges have how many faces, and vertices of no face."""
    a, b, c = (mesh.vertices.double()[mesh.faces[:, i]] for i in range(3))
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]).sort(1).values
    shared = torch.unique(edges, dim=0, return_counts=True)[1].tolist() if len(edges) else []
    found = {
        "edges_by_face_count": {str(n): shared.count(n) for n in sorted(set(shared))},
        "unreferenced_vertices": len(mesh.vertices) - len(mesh.faces.unique()),
    }
    checks = [exact(name, value == record[name]) for name, value in found.items() if name in record]
    if "signed_volume" in record:
        volume = float((a * torch.linalg.cross(b, c)).sum() / 6)
        checks.append(Check("signed_volume", abs(volume - record["signed_volume"]), ABSOLUTE))
    return checks


def _cubes(coords: Tensor, feats: Tensor, resolution: int, tensors: Tensors) -> list[Check]:
    if "mid.surf_cubes" not in tensors:
        return []
    found = surface(corner_grid(coords, feats, resolution))
    ours = {"mid.surf_cubes": found.cubes, "mid.case_ids": found.cases}
    return [exact(name, torch.equal(value, tensors[name].long())) for name, value in ours.items() if name in tensors]


def _training(mesh: Mesh, record: Record, tensors: Tensors) -> list[Check]:
    if mesh.regulariser is None or mesh.corner_sdf is None or mesh.corner_positions is None:
        return [exact("training terms (we do not make them)", False)]
    terms = record["reg_terms"]
    checks = [
        compare(f"reg_terms.{theirs}", mesh.regulariser[ours] / weight, terms[theirs], 1e-5)
        for ours, (theirs, weight) in TERMS.items()
        if abs(terms[theirs]) > ABSOLUTE
    ]
    checks.append(compare("reg_loss", torch.stack([*mesh.regulariser.values()]).sum(), record["reg_loss"], 1e-5))
    recorded = {"output.tsdf_s": mesh.corner_sdf, "output.tsdf_v": mesh.corner_positions}
    return checks + [_absolute(name, value, tensors[name]) for name, value in recorded.items() if name in tensors]


@torch.no_grad()
def run_mesh(root: Path, path: Path, record: Record) -> list[Check]:
    """One extraction; the features that it was given must be as before."""
    tensors, training = tensors_of(path), bool(record.get("training", False))
    coords, feats = _input(root, record, tensors)
    kept = feats.clone()
    mesh = extract_mesh(coords, feats, record["res"], training=training)
    checks = [exact("input unchanged", torch.equal(feats, kept)), exact("success", mesh.success == record["success"])]
    counts = {"num_vertices": len(mesh.vertices), "num_faces": len(mesh.faces)}
    checks += [exact(name, value == record[name]) for name, value in counts.items() if name in record]
    checks.append(_absolute("vertices", mesh.vertices, tensors["output.vertices"]))
    if "output.vertex_attrs" in tensors and len(mesh.vertices):
        checks.append(_absolute("vertex_attrs", mesh.vertex_attrs, tensors["output.vertex_attrs"]))  # type: ignore[arg-type]
    if record.get("vertex_attrs_is_none"):
        checks.append(exact("vertex_attrs", mesh.vertex_attrs is None))
    if "output.face_normal" in tensors and "canon.faces" not in tensors:
        checks.append(Check("face_normal", *_normal_error(mesh, tensors["output.face_normal"])))
    checks += _solid(mesh, record) + _topology(mesh, tensors) + _cubes(coords, feats, record["res"], tensors)
    return checks + (_training(mesh, record, tensors) if training else [])


def _normal_error(mesh: Mesh, theirs: Tensor) -> tuple[float, float]:
    ours = mesh.face_normals[:, 0]
    if ours.shape != theirs.shape:
        return float("inf"), 1e-3
    return (float((ours - theirs).abs().max()) if len(ours) else 0.0), 1e-3


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The case of a record, if it is one of a mesh."""
    if not {"res", "success"} <= record.keys():
        return []
    return [Case(label(root, path), partial(run_mesh, root, path, record))]
