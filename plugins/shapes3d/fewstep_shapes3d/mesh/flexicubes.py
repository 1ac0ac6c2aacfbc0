"""FlexiCubes (Shen et al. 2023, arXiv 2308.05371): a mesh from signed distances with learned weights, in plain torch.

Only cubes with an inside corner are processed; a corner that no given cube has is outside, at a distance of 1. The mesh
is differentiable with respect to the features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep_shapes3d.mesh.grid import CornerGrid, corner_grid, disagreement
from fewstep_shapes3d.mesh.surface import Surface, surface
from fewstep_shapes3d.mesh.tables import tables
from fewstep_shapes3d.representations import Mesh

NO_GAMMA = 20  # the weight term leaves out gamma, the splitting weight
BORDER = 1e-6  # the least signed distance at the border of a grid where the mesh is to be closed


def extract_mesh(coords: Tensor, feats: Tensor, resolution: int, training: bool = False, closed: bool = False) -> Mesh:
    """The mesh of a sparse set of cubes.

    Args:
        coords: [N, 3] cubes of a grid with ``resolution`` cubes along an axis, each once.
        feats: [N, 53 or 101] the mesh decoder's output for each cube; not modified.
        resolution: R.
        training: split each quad at a centre vertex and compute the regulariser.
        closed: close the mesh where it reaches the border of the grid; otherwise it is open there.

    Returns:
        The mesh. Vertices of cubes with one patch come first, then those of cubes with two, and so on, each in the
        grid's C order; in training the quads' centres follow.

    Raises:
        FewstepError: for other shapes, cubes outside the grid, or a cube twice.
    """
    feats = feats.to(torch.promote_types(feats.dtype, torch.float32))
    grid = corner_grid(coords, feats, resolution)
    if closed:
        grid = replace(grid, attrs=_outside_at_border(grid))
    found = surface(grid)
    vertices, colours, owner, deviation = _dual_vertices(found)
    quads = _quads(found, owner, resolution)
    gamma = found.gamma[owner.cube][quads]
    if training:
        vertices, colours, faces = _fan(vertices, colours, quads, gamma)
    else:
        faces = _split(quads, gamma)
    cube = torch.stack([found.cubes[owner.cube], owner.slot], 1)
    if not training:
        return Mesh(vertices, faces, colours, cube)
    loss = _regulariser(deviation, grid, disagreement(grid, coords, feats))
    return Mesh(vertices, faces, colours, cube, loss, grid.positions, grid.attrs[:, 0])


def _outside_at_border(grid: CornerGrid) -> Tensor:
    """The corners' values with every corner on the grid's border outside: the surface passes just within the border."""
    border = ((grid.coords == 0) | (grid.coords == grid.resolution)).any(1, keepdim=True)
    distance = torch.where(border, grid.attrs[:, :1].clamp(min=BORDER), grid.attrs[:, :1])
    return torch.cat([distance, grid.attrs[:, 1:]], 1)


@dataclass(frozen=True, eq=False)
class Owners:
    """Of each dual vertex: its cube (row of the surface) and slot there. ``of_edge`` [S, 12] is the dual vertex of
    each cube's edges, -1 where the edge is not crossed."""

    cube: Tensor
    slot: Tensor
    of_edge: Tensor


def _owners(found: Surface) -> tuple[Owners, Tensor]:
    """The dual vertices in order, and the edges [D, 7] (-1: none) that each is made of."""
    table = tables(found.cubes.device)
    count = table.count[found.cases]
    slots = torch.arange(table.patches.shape[1], device=count.device)
    cube, slot = (slots < count[:, None]).nonzero(as_tuple=True)
    order = torch.argsort(count[cube], stable=True)
    cube, slot = cube[order], slot[order]
    edges = table.patches[found.cases[cube], slot]
    of_edge = torch.full((len(found.cubes), 12), -1, device=count.device)
    vertex, place_ = (edges >= 0).nonzero(as_tuple=True)
    of_edge[cube[vertex], edges[vertex, place_]] = vertex
    return Owners(cube, slot, of_edge), edges


def _between(values: Tensor, ends: Tensor, weight: Tensor) -> Tensor:
    """Linear interpolation of corner values [S, 8, C] to the zero of ``weight`` [S, 8] on edges ``ends`` [E, 2]."""
    a, b = (values[:, ends[:, i]] for i in range(2))
    wa, wb = (weight[:, ends[:, i], None] for i in range(2))
    # Edges that are not crossed are never used; a plain 1 keeps their gradients finite.
    gap = torch.where((wa < 0) == (wb < 0), torch.ones_like(wa), wb - wa)
    return (a * wb - b * wa) / gap


def _dual_vertices(found: Surface) -> tuple[Tensor, Tensor | None, Owners, Tensor]:
    """Positions [D, 3], colours [D, 6] or None, their owners, and the deviations [K] of the regulariser."""
    owner, edges = _owners(found)
    ends = tables(found.cubes.device).edges
    vertex, column = (edges >= 0).nonzero(as_tuple=True)
    cube, edge = owner.cube[vertex], edges[vertex, column]
    beta = found.beta[cube, edge][:, None]
    weight = found.sdf * found.alpha

    def joined(crossings: Tensor) -> Tensor:
        """The mean over each patch's edges, weighted by beta."""
        total = crossings.new_zeros(len(edges), crossings.shape[-1] + 1)
        total = total.index_add(0, vertex, torch.cat([crossings[cube, edge] * beta, beta], 1))
        return total[:, :-1] / total[:, -1:]

    positions = joined(_between(found.positions, ends, weight))
    colours = None if found.colours is None else joined(_between(found.colours, ends, weight))
    plain = _between(found.positions, ends, found.sdf)[cube, edge]
    distance = (plain - positions[vertex]).norm(dim=-1)
    count = torch.bincount(vertex, minlength=len(edges)).to(distance.dtype)
    mean = distance.new_zeros(len(edges)).index_add(0, vertex, distance) / count
    return positions, colours, owner, (distance - mean[vertex]).abs()


def _quads(found: Surface, owner: Owners, resolution: int) -> Tensor:
    """[Q, 4] dual vertices around each crossed edge of the grid that four surface cubes share, outward."""
    ends = tables(found.cubes.device).edges
    cube, edge = (owner.of_edge >= 0).nonzero(as_tuple=True)
    first, second = (found.corner_keys[cube, ends[edge, i]] for i in range(2))
    _, group, count = torch.unique(first * (resolution + 1) ** 3 + second, return_inverse=True, return_counts=True)
    shared = count[group] == 4
    order = torch.argsort(group[shared], stable=True)
    cube, edge = (part[shared][order].view(-1, 4) for part in (cube, edge))
    vertices = owner.of_edge[cube, edge]
    outside = found.sdf[cube[:, 0], ends[edge[:, 0], 0]] >= 0
    return torch.cat([vertices[outside][:, [0, 1, 3, 2]], vertices[~outside][:, [2, 3, 1, 0]]])


def _split(quads: Tensor, gamma: Tensor) -> Tensor:
    """Two triangles per quad, split along the diagonal with the larger product of weights."""
    along = (gamma[:, 0] * gamma[:, 2] > gamma[:, 1] * gamma[:, 3])[:, None]
    return torch.where(along, quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 3, 1, 2]]).view(-1, 3)


def _fan(
    vertices: Tensor, colours: Tensor | None, quads: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Four triangles per quad around a centre, the weighted mean of the diagonals' midpoints: gradients reach gamma."""
    a, b = (gamma[:, 0] * gamma[:, 2])[:, None], (gamma[:, 1] * gamma[:, 3])[:, None]

    def with_centres(x: Tensor) -> Tensor:
        one, other = ((x[quads[:, i]] + x[quads[:, i + 2]]) / 2 for i in range(2))
        return torch.cat([x, (one * a + other * b) / (a + b + 1e-8)])

    centre = len(vertices) + torch.arange(len(quads), device=quads.device)
    faces = torch.stack([quads, quads.roll(-1, 1), centre[:, None].expand(-1, 4)], 2).view(-1, 3)
    return with_centres(vertices), None if colours is None else with_centres(colours), faces


def _regulariser(deviation: Tensor, grid: CornerGrid, consistency: Tensor) -> dict[str, Tensor]:
    """The published terms, weighted as published: even patches, small weights, cubes that agree at shared corners."""
    even = deviation.mean() if len(deviation) else grid.attrs.sum() * 0
    small = grid.weights[:, :NO_GAMMA].abs().mean() if len(grid.weights) else grid.attrs.sum() * 0
    return {"deviation": 0.5 * even, "weights": 0.2 * small, "consistency": consistency}
