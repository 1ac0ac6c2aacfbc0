"""The shipped nano model's second stage: its files, their size, and what its decoders make of held-out objects."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_shapes3d.data import SWEETHOME3D
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.measures.surfaces import true_cloud
from fewstep_trellis.checkpoint import load_model
from fewstep_trellis.models import SLatEncoder, SLatFlowModel, SLatGaussianDecoder, SLatMeshDecoder
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.shipped import NANO, shipped_students
from fewstep_trellis.slat import StructuredLatentFlow
from fewstep_trellis.slat_dataset import PreparedLatents, PreparedLatentsConfig, packed
from fewstep_trellis.teach.slat_quality import sample, without_cavities
from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.engine.export import load_student

CLASSES = {
    "slat_encoder": SLatEncoder,
    "slat_decoder_mesh": SLatMeshDecoder,
    "slat_decoder_gs": SLatGaussianDecoder,
    "slat_flow": SLatFlowModel,
}
SMALL = 700  # voxels: a decoded object of that size takes a second or two


@cache
def model(name: str) -> Any:
    return load_model(NANO / name).eval().requires_grad_(False)


@cache
def small_objects() -> list[int]:
    data = PreparedSet.load()
    return [int(row) for row in data.test if 250 < int(data.table[int(row)]["voxels"]) < SMALL][:3]


def latents(row: int) -> tuple[Tensor, Tensor]:
    coords, features = PreparedSet.load().surface(row)
    return model("slat_encoder")(features, packed([coords])), coords


@pytest.mark.parametrize("name", CLASSES)
def test_models_are_what_the_description_says(name: str) -> None:
    assert isinstance(model(name), CLASSES[name])
    described = json.loads((NANO / "pipeline.json").read_text())["args"]
    assert described["image_cond_model"] == "efficientnet-lite0"
    assert name == "slat_encoder" or name in described["models"].values()
    for file in described["models"].values():
        assert (NANO / f"{file}.json").is_file()
        assert (NANO / f"{file}.safetensors").is_file()


def test_the_second_stage_is_small() -> None:
    students = list(shipped_students("slat").values())
    assert students
    files = [NANO / f"{name}.safetensors" for name in CLASSES] + [folder / "model.safetensors" for folder in students]
    assert sum(file.stat().st_size for file in files) <= 7.7e6
    assert (SWEETHOME3D / "surface.npz").stat().st_size <= 3.5e6


def test_normalised_latents_have_unit_scale() -> None:
    normalisation = Normalisation.beside(NANO / "slat_encoder")
    assert normalisation is not None
    data = PreparedSet.load()
    found = [
        model("slat_encoder")(features, packed([coords])) for coords, features in map(data.surface, data.train[::30])
    ]
    scaled = torch.cat([normalisation.apply(z) for z in found])
    assert scaled.mean(0).abs().max() < 0.3
    assert (scaled.std(0) - 1).abs().max() < 0.3


@pytest.mark.parametrize("at", range(3))
def test_meshes_lie_on_the_surface_in_its_colours(at: int) -> None:
    row = small_objects()[at]
    z, coords = latents(row)
    (mesh,) = model("slat_decoder_mesh").decode(z, packed([coords]))
    truth = true_cloud(*PreparedSet.load().surface(row), 32)
    vertices, faces = mesh.vertices.double().numpy(), mesh.faces.numpy()
    points, colour = sample(vertices, mesh.colours.double().numpy(), without_cavities(vertices, faces), 20000)
    distance, nearest = cKDTree(points).query(truth.points.numpy())
    assert distance.mean() * 32 < 0.45, "voxels; 0.25 of them are the thickness that is added on purpose"
    assert np.abs(colour[nearest] - truth.colours.numpy()).mean() < 0.1


@pytest.mark.parametrize("at", range(3))
def test_gaussians_lie_on_the_surface_in_its_colours(at: int) -> None:
    row = small_objects()[at]
    z, coords = latents(row)
    (found,) = model("slat_decoder_gs").decode(z, packed([coords]))
    truth = true_cloud(*PreparedSet.load().surface(row), 32)
    distance, nearest = cKDTree(found.xyz.numpy()).query(truth.points.numpy())
    (wrong,) = model("slat_decoder_gs").decode(z.roll(len(z) // 2, 0), packed([coords]))
    assert distance.mean() * 32 < 0.3, "voxels"
    assert distance.mean() < cKDTree(wrong.xyz.numpy()).query(truth.points.numpy())[0].mean(), "latents say nothing"
    colour = (found.features_dc[:, 0] * 0.28209479177387814 + 0.5).numpy()
    assert np.abs(colour[nearest] - truth.colours.numpy()).mean() < 0.12
    assert (found.opacity > 0.8).float().mean() > 0.95


def velocity_error(flow: Any, batch: Batch, t: float, tokens: Tensor) -> float:
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(0))
    from fewstep.core.batch import Condition

    found = flow(
        (1 - t) * batch.x0 + t * noise, torch.full((batch.layout.batch_size,), t), Condition(tokens), batch.layout
    )
    return float((found - (noise - batch.x0)).square().mean())


def held_out() -> Batch:
    rows = torch.tensor([int(np.flatnonzero(PreparedSet.load().test == row)[0]) for row in small_objects()])
    flow = StructuredLatentFlow(model("slat_flow"))
    return PreparedLatents(PreparedLatentsConfig(), flow).held_out().select(rows)


def test_the_flow_predicts_and_reads_its_picture() -> None:
    batch, flow = held_out(), StructuredLatentFlow(model("slat_flow"))
    tokens = batch.cond.tokens
    assert tokens is not None
    own = velocity_error(flow, batch, 0.5, tokens)
    assert own < 0.6, "the velocity has variance 2"
    assert own < velocity_error(flow, batch, 0.5, tokens.roll(1, 0))


def test_the_student_has_a_contract_and_the_teachers_normalisation() -> None:
    for folder in shipped_students("slat").values():
        student, info = load_student(folder)
        assert isinstance(student, StructuredLatentFlow)
        assert student.normalisation == Normalisation.beside(NANO / "slat_flow")
        assert 1 in info.contract.steps
        assert not any(str(value).startswith("/") for value in _leaves(info.config)), "no path of the training machine"


def _leaves(value: Any) -> list[Any]:
    return [leaf for part in value.values() for leaf in _leaves(part)] if isinstance(value, dict) else [value]
