"""Two stages against a straight-line script, written from the specification, that shares no code with the runner."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep_trellis.checkpoint import load_model
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.memory import Clock, Shelf, memory_guard, peak_memory
from fewstep_trellis.pipeline.recipe import Asked, recipe_of
from fewstep_trellis.pipeline.request import Objects, Prompt, Request, Unusable, occupied
from fewstep_trellis.pipeline.run import Runner
from graph_helpers import Rerun
from pipeline_helpers import (
    COND,
    LATENT_SAMPLER,
    NORMALISATION,
    STRUCTURE_SAMPLER,
    C,
    describe,
    network,
)
from torch import Tensor

from fewstep.core.graphs import Graphed
from fewstep.core.layout import Packed
from fewstep.errors import FewstepError

MESH, GAUSSIANS = "slat_decoder_mesh", "slat_decoder_gs"
TOKENS = torch.randn(3, 5, COND, generator=torch.Generator().manual_seed(1))


def runner(folder: Path, sampler: str | None = None, **more: Any) -> Runner:
    pipeline, asked = Pipeline.open(folder), Asked(sampler=sampler)
    recipes = {stage: recipe_of(pipeline.spec.sampler(stage), None, asked)[0] for stage in ("ss", "slat")}
    return Runner(pipeline, recipes, **more)


def model(folder: Path, name: str) -> Any:
    found: Any = load_model(folder / "ckpts" / name)
    found.convert_to_fp32()
    return found.eval()


def by_hand(folder: Path, samples: int, seed: int, conditions: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Coords [T, 4] and latents [T, C]. ``conditions``: for each step the pictures whose predictions are averaged."""

    def euler(sampler: dict[str, Any], x: Tensor, ask: Any) -> Tensor:
        params = sampler["params"]
        warp = params["rescale_t"]
        times = [warp * t / (1 + (warp - 1) * t) for t in np.linspace(1, 0, params["steps"] + 1)]
        low, high = params["cfg_interval"]
        for step in range(params["steps"]):
            now, after = times[step], times[step + 1]
            first = step % len(conditions)  # in fewer steps than conditions each takes its share of them
            pictures = [picture for one in conditions[first :: params["steps"]] for picture in one]
            v = sum(ask(x, now, one) for one in pictures) / len(pictures)
            if low <= now <= high:
                w = params["cfg_strength"]
                v = (1 + w) * v - w * ask(x, now, torch.zeros_like(TOKENS[:1]))
            x = x - (now - after) * v
        return x

    ss, decoder, slat = (model(folder, name) for name in ("ss_flow", "ss_dec", "slat_flow"))
    with torch.no_grad():
        torch.manual_seed(seed)  # the global generator, as in the reference
        noise = torch.randn(samples, C, 4, 4, 4)
        time = torch.ones(samples)
        z = euler(STRUCTURE_SAMPLER, noise, lambda x, t, c: ss(x, (1000 * t * time).float(), c.expand(samples, -1, -1)))
        coords = torch.argwhere(decoder(z)[:, 0] > 0)
        layout = Packed.of_index(coords[:, 0], coords[:, 1:].int())
        x = euler(
            LATENT_SAMPLER,
            torch.randn(len(coords), C),
            lambda x, t, c: slat(x, (1000 * t * time).float(), c.expand(samples, -1, -1), layout),
        )
    mean, std = (torch.tensor(NORMALISATION[key]) for key in ("mean", "std"))
    return coords, x * std + mean


def assert_same(found: Objects, coords: Tensor, latents: Tensor) -> None:
    assert found.layout.coords is not None
    assert torch.equal(found.layout.coords.long(), coords[:, 1:])
    assert torch.equal(found.layout.index, coords[:, 0])
    assert torch.allclose(found.latents, latents, rtol=1e-5, atol=1e-6 * float(latents.abs().max()))


def test_two_stages_are_those_of_a_straight_line_script(tiny_pipeline: Path) -> None:
    found = runner(tiny_pipeline)(Request(Prompt(TOKENS[:1]), samples=2, seed=7), [MESH, GAUSSIANS])
    coords, latents = by_hand(tiny_pipeline, 2, 7, [[TOKENS[:1]]])
    assert_same(found, coords, latents)
    assert found.resolution == 8
    layout = Packed.of_index(coords[:, 0], coords[:, 1:].int())
    with torch.no_grad():
        meshes = model(tiny_pipeline, "slat_dec_mesh").decode(latents, layout)
        gaussians = model(tiny_pipeline, "slat_dec_gs").decode(latents, layout)
    for one, other in zip(found.decoded[MESH], meshes, strict=True):
        assert one.vertices.shape == other.vertices.shape
        assert torch.allclose(one.vertices, other.vertices, atol=1e-4)
    for one, other in zip(found.decoded[GAUSSIANS], gaussians, strict=True):
        assert torch.allclose(one.xyz, other.xyz, atol=1e-5)


def test_a_seed_is_a_result(tiny_pipeline: Path) -> None:
    run = runner(tiny_pipeline)
    first, again, other = (run(Request(Prompt(TOKENS[:1]), seed=seed), []) for seed in (3, 3, 4))
    assert torch.equal(first.latents, again.latents)
    assert first.latents.shape != other.latents.shape or not torch.equal(first.latents, other.latents)


@pytest.mark.parametrize("mode", ["stochastic", "multidiffusion"])
def test_several_pictures_in_both_ways(tiny_pipeline: Path, mode: str) -> None:
    each = [[picture] for picture in TOKENS.split(1)]
    conditions = each if mode == "stochastic" else [list(TOKENS.split(1))]
    found = runner(tiny_pipeline)(Request(Prompt(TOKENS), seed=5, multi_image=mode), [])
    assert_same(found, *by_hand(tiny_pipeline, 1, 5, conditions))


def test_a_negative_condition_is_used(tiny_pipeline: Path) -> None:
    zeros, other = torch.zeros_like(TOKENS[:1]), TOKENS[1:2]
    run = runner(tiny_pipeline)
    plain, same, changed = (run(Request(Prompt(TOKENS[:1], negative)), []).latents for negative in (None, zeros, other))
    assert torch.allclose(plain, same, rtol=1e-4, atol=1e-5)  # zeros that are said to be zeros are not computed with
    assert plain.shape != changed.shape or not torch.allclose(plain, changed)


def test_the_normalisation_of_the_file_is_undone(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    request = Request(Prompt(TOKENS[:1]))
    before = runner(tmp_path / "p")(request, []).latents
    describe(tmp_path / "p", slat_normalization={"mean": [0.0] * C, "std": [1.0] * C})
    plain = runner(tmp_path / "p")(request, []).latents
    mean, std = (torch.tensor(NORMALISATION[key]) for key in ("mean", "std"))
    assert torch.allclose(before, plain * std + mean)


@pytest.mark.parametrize("sampler", ["euler", "heun", "consistency"])
def test_low_memory_gives_the_same(tiny_pipeline: Path, sampler: str) -> None:
    request = Request(Prompt(TOKENS[:1]), samples=2)
    kept = runner(tiny_pipeline, sampler=sampler)(request, [GAUSSIANS])
    freed = runner(tiny_pipeline, sampler=sampler, low_memory=True)(request, [GAUSSIANS])
    assert torch.equal(kept.latents, freed.latents)
    assert torch.equal(kept.decoded[GAUSSIANS][1].xyz, freed.decoded[GAUSSIANS][1].xyz)


@pytest.mark.parametrize("low_memory", [True, False])
def test_how_many_models_are_held(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, low_memory: bool) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, load = [0], Pipeline.model

    def counted(self: Pipeline, role: str) -> Any:
        found = load(self, role)
        alive.add(found)
        gc.collect()
        most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr(Pipeline, "model", counted)
    runner(tiny_pipeline, low_memory=low_memory)(Request(Prompt(TOKENS[:1])), [MESH, GAUSSIANS])
    assert most[0] == (1 if low_memory else 5)


def test_models_go_to_the_device_for_their_stage_only() -> None:
    class Model:
        places: list[str] = []  # noqa: RUF012

        def to(self, place: Any) -> Model:
            self.places.append(str(place))
            return self

    shelf = Shelf(torch.device("meta"), True, Clock(torch.device("cpu")))
    for _ in range(2):
        with shelf.lend("a", Model) as model:
            assert model.places[-1] == "meta"
        assert model.places[-1] == "cpu"
    assert model.places == ["meta", "cpu"] * 2
    with Shelf(torch.device("meta"), True, Clock(torch.device("cpu")), stay=True).lend("a", Model) as model:
        pass
    assert model.places[-1] == "meta"


def test_graphs_want_every_model_in_place(tiny_pipeline: Path) -> None:
    with pytest.raises(FewstepError, match="--graphs keeps every model on the device"):
        runner(tiny_pipeline, low_memory=True, graphs=True)
    assert runner(tiny_pipeline, graphs=True).replays is None  # on a CPU


def test_the_structure_stage_by_replays_gives_the_same(tiny_pipeline: Path) -> None:
    said: list[str] = []
    request = Request(Prompt(TOKENS[:1]))
    plain, replayed = runner(tiny_pipeline), runner(tiny_pipeline, graphs=True)
    replayed.replays = Graphed(said.append, Rerun)
    found = [replayed(request, [GAUSSIANS]) for _ in range(3)][-1]
    assert torch.equal(found.latents, plain(request, [GAUSSIANS]).latents)
    assert said == []
    assert sum(one is not None for one in replayed.replays.known.values()) == 3  # with condition, without, the decoder


def test_a_stage_inside_another_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    told: list[str] = []
    clock = Clock(torch.device("cpu"), told.append)
    with clock("outer"), clock("inner"):
        clock.on_step(1, 2)
    assert clock.seconds == {"outer": 8.0, "inner": 2.0}
    assert told == ["outer", "inner", "inner 1/2"]


def test_an_empty_structure_is_an_error_and_an_empty_sample_a_warning() -> None:
    none = torch.zeros(0, 4, dtype=torch.int32)
    with pytest.raises(Unusable, match="structure came out empty"):
        occupied(none, 2)
    with pytest.warns(UserWarning, match="sample 1, 3 came out empty"):
        numbers, layout = occupied(torch.tensor([[1, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.int32), 3)
    assert (numbers, layout.lengths_list) == ([1], [2])


def test_no_voxel_at_all_ends_the_run(tmp_path: Path, tiny_pipeline: Path) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "p")
    from fewstep_trellis.checkpoint import save_model

    decoder: Any = network("ss_dec")
    decoder.out_layer[-1].weight.data.zero_()
    decoder.out_layer[-1].bias.data.fill_(-1.0)
    save_model(decoder, tmp_path / "p/ckpts/ss_dec")
    with pytest.raises(Unusable, match="no voxel is occupied"):
        runner(tmp_path / "p")(Request(Prompt(TOKENS[:1])), [])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_says_what_helps(error: BaseException) -> None:
    with pytest.raises(Unusable, match="out of memory") as raised, memory_guard(4, low_memory=False):
        raise error
    assert "--low-memory" in str(raised.value)
    assert "fewer --samples than 4" in str(raised.value)
    with pytest.raises(Unusable) as raised, memory_guard(1, low_memory=True):
        raise error
    assert "--low-memory" not in str(raised.value)
    assert "--samples" not in str(raised.value)
    with pytest.raises(Unusable) as raised, memory_guard(1, low_memory=False, graphs=True):
        raise error
    assert "--low-memory in place of --graphs" in str(raised.value)


def test_a_real_failure_of_the_cpu_allocator_is_recognised(tiny_pipeline: Path) -> None:
    request = replace(Request(Prompt(TOKENS[:1])), samples=2**40)
    with pytest.raises(Unusable, match="out of memory"):
        runner(tiny_pipeline)(request, [])


def test_other_errors_pass_through_the_memory_guard() -> None:
    with pytest.raises(RuntimeError, match="shape"), memory_guard(1, low_memory=False):
        raise RuntimeError("shape mismatch")


def test_the_peak_is_that_of_this_process() -> None:
    before = peak_memory(torch.device("cpu"))["process"]
    block = torch.ones(96 * 2**20 // 4)
    assert peak_memory(torch.device("cpu"))["process"] >= before
    assert float(block.sum()) > 0
    assert 0.05 < before < 200
