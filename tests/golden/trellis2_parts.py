"""Cases of TRELLIS.2 around its flows: autoencoders, dual grids, DINOv3's tokens, the steps between the stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fewstep_shapes3d.pictures.loading import load_picture
from fewstep_trellis.checkpoint import build_model
from fewstep_trellis.conditioning import hub
from fewstep_trellis.conditioning.dino import normalise, pixels
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.weights import fit
from fewstep_trellis2.conditioning.dino import KIND, DinoV3Conditioner
from fewstep_trellis2.mesh.dual_grid import DualGrid
from fewstep_trellis2.models import MODELS
from fewstep_trellis2.pipeline.grids import finer_cells, occupied_cells
from fewstep_trellis2.vae import AUTOENCODERS, FlexiDualGridVaeDecoder, FlexiDualGridVaeEncoder, SparseUnetVaeDecoder
from fewstep_trellis2.vae.subdivision import Subdivision
from PIL import Image
from torch import Tensor

from fewstep.core.layout import Packed
from golden.cases import Case, Check, Record, compare, exact, label, part, tensors_of
from golden.models import _watch
from golden.runners import Tensors, rows_of, voxels

TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2
HALF = "raw_fp16_torso"


def cases(root: Path, path: Path, record: Record) -> list[Case]:
    """The cases of one record; none if it is of another kind."""
    name = label(root, path)
    if record.get("class") in AUTOENCODERS:
        run: Any = partial(_autoencoder, path, record) if "outputs" in record else partial(_state_dict, record)
    elif {"grid_size", "aabb"} <= record.keys():
        run = partial(_dual_grid, path, record)
    elif "lr_resolution" in record:
        run = partial(_between_stages, path, record)
    elif isinstance(record.get("config"), dict) and record["config"].get("model_type") in KIND.types:
        run = partial(_dino, path, record)
    else:
        return []
    return [Case(name, run)]


def _state_dict(record: Record) -> list[Check]:
    """Keys, shapes and types of an official configuration, all of them parameters."""
    state = build_model(record["class"], record["args"], "meta", MODELS).state_dict()
    ours = [[key, list(v.shape), str(v.dtype).removeprefix("torch."), "param"] for key, v in state.items()]
    return [exact("state dict", ours == record["tensors"])]


@torch.no_grad()
def _autoencoder(path: Path, record: Record) -> list[Check]:
    tensors, seen = tensors_of(path), cast(Tensors, {})
    given, wanted, mids = (part(tensors, prefix) for prefix in ("input.", "output.", "mid."))
    model = _model(path, record, tensors)
    # Blocks that change the grid put out more than the features that were recorded of them.
    _watch(model, list(mids), seen)
    run = {FlexiDualGridVaeDecoder: _shape, SparseUnetVaeDecoder: _texture, FlexiDualGridVaeEncoder: _encoder}
    ours = run[type(model)](model, given)  # type: ignore[index]
    checks = [_check(f"output.{name}", ours[name], value) for name, value in wanted.items() if name != HALF]
    plain = {name: value[0] if isinstance(value, tuple) else value for name, value in seen.items()}
    checks += [_check(f"mid.{name}", plain[name], value) for name, value in mids.items()]
    checks += [_check(name, ours[name], value) for name, value in tensors.items() if name.startswith("mesh")]
    if HALF in wanted:
        half = _model(path, record, tensors, use_fp16=True)
        types = {k: str(v.dtype).removeprefix("torch.") for k, v in half.state_dict().items() if v.element_size() == 2}
        checks.append(exact("half types", types == record["state_dtypes_fp16"]))
        raw = half(given["feats"], voxels(given["coords"])).features
        checks.append(compare("half.raw", raw, wanted[HALF], HALF_TOLERANCE))
    return checks


def _model(path: Path, record: Record, tensors: Tensors, **changes: Any) -> Any:
    model = build_model(record["class"], record["args"] | changes, "meta", MODELS)
    fit(model, part(tensors, "state."), str(path))
    return model.eval()


def _check(what: str, ours: Tensor, theirs: Tensor) -> Check:
    if theirs.is_floating_point():
        return compare(what, ours, theirs, TOLERANCE)
    return exact(what, torch.equal(ours.long(), theirs.long()))


def _shape(model: FlexiDualGridVaeDecoder, given: Tensors) -> Tensors:
    layout = voxels(given["coords"])
    made = model(given["feats"], layout)
    found = {"raw": made.features, "coords": rows_of(made.layout)}
    for level, step in enumerate(made.subdivisions):
        found[f"subdivision.{level}.feats"] = step.logits
        found[f"subdivision.{level}.coords"] = rows_of(made.subdivisions[level - 1].layout if level else layout)
    for times in range(len(made.subdivisions) + 1):
        found[f"upsample_{times}.coords"] = rows_of(model.upsample(given["feats"], layout, times))
    grid, lengths = model.dual_grid(made.features, made.layout), made.layout.lengths_list
    assert made.layout.coords is not None
    assert grid.weight is not None
    columns = {"coords": made.layout.coords, "dual_vertices": grid.vertex, "intersected": grid.intersected}
    columns["split_weight"] = grid.weight[:, None]
    for number, mesh in enumerate(model.meshes(made)):
        found |= {f"mesh{number}.vertices": mesh.vertices, f"mesh{number}.faces": mesh.faces}
        found |= {f"mesh{number}.{name}": value.split(lengths)[number] for name, value in columns.items()}
    return found


def _texture(model: SparseUnetVaeDecoder, given: Tensors) -> Tensors:
    layout = coarse = voxels(given["coords"])
    guide: list[Subdivision] = []
    for level in range(len(model.num_blocks) - 1):
        guide.append(Subdivision.of_logits(given[f"guide_subs.{level}.feats"], layout))
        layout = guide[-1].layout
    made = model(given["feats"], coarse, guide)
    return {"raw": made.features, "coords": rows_of(made.layout), "attributes": made.features * 0.5 + 0.5}


def _encoder(model: FlexiDualGridVaeEncoder, given: Tensors) -> Tensors:
    mean, logvar, layout = model.encode(given["vertices"], given["intersected"], voxels(given["coords"]))
    return {"mean": mean, "logvar": logvar, "coords": rows_of(layout)}


def _dual_grid(path: Path, record: Record) -> list[Check]:
    tensors, size = tensors_of(path), record["grid_size"]
    coords, weight = tensors["coords"], tensors["split_weight"][:, 0]
    low, high = (torch.tensor(corner) for corner in record["aabb"])
    grids = {"split": weight, "angle": None}
    checks = []
    for name, weights in grids.items():
        layout = Packed.of_lengths([len(coords)], coords)
        grid = DualGrid(layout, tensors["dual_vertices"], tensors["intersected"], weights)
        found = grid.faces(grid.quads(size))
        checks.append(exact(f"{name}.faces", torch.equal(found, tensors[f"{name}.faces"].long())))
        points = (grid.points(size) + 0.5) * (high - low) + low
        checks.append(compare(f"{name}.vertices", points, tensors[f"{name}.vertices"], TOLERANCE))
        if weights is not None:
            vertices, faces = grid.with_centres(points, grid.quads(size))
            checks.append(compare("train.vertices", vertices, tensors["train.vertices"], TOLERANCE))
            checks.append(exact("train.faces", torch.equal(faces, tensors["train.faces"].long())))
    return checks


def _dino(path: Path, record: Record) -> list[Check]:
    tensors = tensors_of(path)
    model = hub.build(KIND, record["config"], part(tensors, "state."), str(path))
    encoder, checks = DinoV3Conditioner(model, path.stem), list[Check]()
    for tag, case in record["cases"].items():
        size, own = case["image_size"], part(tensors, f"{tag}.")
        pictures = [Image.fromarray(own[f"picture.{i}"].numpy()) for i in range(len(case["pictures"]))]
        sized = [pixels(picture, size) for picture in pictures]
        for i, one in enumerate(sized):
            same = torch.equal((one * 255).round().byte().permute(1, 2, 0), own[f"resized.{i}"])
            checks.append(exact(f"{tag}.resized.{i}", same))
        found = {"pixel_values": normalise(torch.stack(sized)), "cond": encoder.encode(pictures, size)}
        found["cond_from_tensor"] = encoder(own["tensor_input"])
        checks += [compare(f"{tag}.{name}", value, own[name], TOLERANCE) for name, value in found.items()]
        checks.append(exact(f"{tag}.tokens", found["cond"].shape[1] == case["tokens"]))
    return checks


def _between_stages(path: Path, record: Record) -> list[Check]:
    """The structure's cells at several sizes, those of the fine stage, the order of the noise, normalisation."""
    tensors = tensors_of(path)
    numbers = {name: tuple(tensors[name].tolist()) for name in ("mean", "std")}
    normalisation = Normalisation(mean=numbers["mean"], std=numbers["std"])
    checks = []
    for name, coords in part(tensors, "structure.coords_").items():
        found = occupied_cells(tensors["structure.logits"], int(name))
        checks.append(exact(f"structure.coords_{name}", torch.equal(found, coords.long())))
    for name, case in record["cases"].items():
        own = part(tensors, f"{name}.")
        cells, resolution = finer_cells(tensors["hr_coords"], case["asked"], case["max_num_tokens"])
        checks.append(exact(f"{name}.coords", torch.equal(cells, own["coords"].long())))
        checks.append(exact(f"{name}.resolution", resolution == case["used_resolution"]))
        generator = torch.Generator().manual_seed(record["seed_of_torch_generator"])
        low, high = own["noise_low"], own["noise_high"]
        drawn = torch.randn(low.shape, generator=generator)
        checks.append(exact(f"{name}.noise_low", torch.equal(drawn, low)))
        checks.append(compare(f"{name}.decoder_input", normalisation.undo(low), own["decoder_input"], TOLERANCE))
        count = case["tokens"]
        drawn = torch.randn(count, high.shape[1], generator=generator)
        checks.append(exact(f"{name}.noise_high", torch.equal(drawn[: len(high)], high)))
        checks.append(compare(f"{name}.result", normalisation.undo(high), own["result"], TOLERANCE))
    shape = normalisation.apply(tensors["texture.shape_latent"])
    checks.append(compare("texture.concat_cond", shape, tensors["texture.concat_cond"], TOLERANCE))
    ones = torch.ones_like(tensors["texture.result_of_ones"])
    checks.append(compare("texture.result", normalisation.undo(ones), tensors["texture.result_of_ones"], TOLERANCE))
    return checks


def preparation(given: Path, wanted: Path) -> list[Check]:
    """The picture of a pipeline before and after preparation, which leaves its size."""
    with Image.open(wanted) as image:
        theirs = np.asarray(image.convert("RGB"))
    ours = np.asarray(DinoV3Conditioner.prepare(load_picture(given), given.name))
    return [exact("every pixel", ours.shape == theirs.shape and bool((ours == theirs).all()))]
