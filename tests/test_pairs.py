"""Stored pairs: the teacher's own samples, made once, kept, counted, and the same however they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep_toy.config import PointsConfig, ToyConfig
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.network import ToyFlow
from safetensors.torch import load_file
from torch import Tensor

import fewstep
from fewstep.config.resolve import resolve_stages
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.dataset import Dataset
from fewstep.core.guidance import Guidance
from fewstep.core.layout import Dense, Packed
from fewstep.core.pairs import Pair, PairsConfig, TeacherPairs
from fewstep.core.times import step_grid
from fewstep.errors import FewstepError
from fewstep.testing import TinyBackbone

CPU = torch.device("cpu")
DRAWS = torch.Generator()  # what pairs are given and never look at
RING: dict[str, Any] = {"target": "ring", "conditional": True, "guidance": 2.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def toy(packed: bool = False, **settings: Any) -> TeacherPairs:
    teacher = ToyFlow.teacher(ToyConfig(**RING))
    data = ToyPoints(PointsConfig(size=20, held_out=1, layout="packed" if packed else "dense"), teacher.backbone)
    return TeacherPairs(PairsConfig(**{"count": 10, "steps": 4, "batch_size": 4, **settings}), data, teacher)


def prepared(pairs: TeacherPairs) -> TeacherPairs:
    pairs.prepare(CPU)
    return pairs


class Views(Dataset):
    """Samples that are alike, each under one of a hundred conditions that is drawn."""

    def __init__(self) -> None:
        super().__init__(None, TinyBackbone())

    def __len__(self) -> int:
        return 6

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        views = torch.randint(100, (len(indices),), generator=generator)
        tokens = torch.stack([torch.tensor(indices), views], 1).float()
        return Batch(torch.zeros(len(indices), 4, 3), Dense(len(indices)), Condition(tokens))


class Voxels(Views):
    """The same of unequal length, on coordinates."""

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        lengths = [1 + i for i in indices]
        coords = torch.cat([torch.arange(3 * n).reshape(n, 3) for n in lengths])
        cond = super().batch(indices, generator).cond
        return Batch(torch.zeros(sum(lengths), 3), Packed.of_lengths(lengths, coords), cond)


class Uneven(Views):
    """Conditions of a length of their own."""

    def batch(self, indices: list[int], generator: torch.Generator) -> Batch:
        length = 1 + int(torch.randint(100, (1,), generator=generator))
        return Batch(torch.zeros(len(indices), 4, 3), Dense(len(indices)), Condition(torch.zeros(len(indices), length)))


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_the_guided_teachers_samples_under_the_data_sets_conditions(packed: bool) -> None:
    pairs = prepared(toy(packed))
    pair, x = pairs.batch([7, 2, 7], DRAWS), pairs.batch([7, 2, 7], DRAWS).noise
    field = pairs.teacher.backbone
    for t, s in zip([1.0, 0.75, 0.5, 0.25], [0.75, 0.5, 0.25, 0.0], strict=True):
        t_B = torch.full((3,), t, dtype=torch.float64)
        c, u = (field(x, t_B, cond, pair.layout) for cond in (pair.cond, pair.cond.negative()))
        x = x - (t - s) * (u + 2.0 * (c - u))
    torch.testing.assert_close(pair.x0, x, rtol=1e-5, atol=1e-6)
    source = pairs.dataset.batch([pairs.samples[i] for i in (7, 2, 7)], DRAWS)
    assert pair.cond.tokens is not None
    assert source.cond.tokens is not None
    assert torch.equal(pair.cond.tokens, source.cond.tokens)
    assert isinstance(pair.layout, Packed if packed else Dense)
    assert len(pair.x0) == len(pair.noise) == len(source.x0)
    assert not torch.equal(pair.x0, source.x0)


def test_the_grid_is_warped_as_the_teachers() -> None:
    pairs = toy()
    pairs.teacher.rescale_t = 3.0
    seen: list[float] = []
    pairs.teacher.backbone.register_forward_hook(lambda net, given, out: seen.append(float(given[1][0])))
    prepared(pairs)
    assert sorted(set(seen), reverse=True) == pytest.approx(step_grid(4, 3.0)[:-1])


def test_noise_is_standard_normal_and_a_samples_own() -> None:
    pairs = prepared(toy(count=400, batch_size=100, steps=1))
    noise = pairs.batch(list(range(400)), DRAWS).noise
    assert len(noise.unique(dim=0)) == 400
    assert float(noise.mean()) == pytest.approx(0, abs=0.15)
    assert float(noise.std()) == pytest.approx(1, abs=0.1)
    assert sorted(pairs.samples[:20]) == list(range(20))  # every sample before one comes again


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_does_not_depend_on_how_many_there_are(packed: bool) -> None:
    few, many = prepared(toy(packed, count=6)), prepared(toy(packed, count=14))
    for name in ("x0", "noise"):
        a, b = (getattr(pairs.batch([5, 1], DRAWS), name) for pairs in (few, many))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [Views, Voxels])
def test_a_drawn_condition_stays_with_its_pair(kind: type[Views]) -> None:
    teacher = Teacher(TinyBackbone(), Guidance(2.0))
    pairs = prepared(TeacherPairs(PairsConfig(count=9, steps=3, batch_size=4), kind(), teacher))
    whole = pairs.batch(list(range(9)), DRAWS)
    assert whole.cond.tokens is not None
    assert len(whole.cond.tokens[:, 1].unique()) > 4
    alone = [pairs.batch([i], torch.Generator().manual_seed(i)) for i in range(9)]
    assert torch.equal(whole.cond.tokens, torch.cat([one.cond.tokens for one in alone if one.cond.tokens is not None]))
    if isinstance(whole.layout, Packed):
        coords = [one.layout.coords for one in alone if isinstance(one.layout, Packed)]
        assert whole.layout.coords is not None
        assert torch.equal(whole.layout.coords, torch.cat([one for one in coords if one is not None]))
    x, layout = whole.noise, whole.layout
    for t in (1.0, 2 / 3, 1 / 3):
        x = x - teacher(x, torch.full((9,), t), whole.cond, layout) / 3
    torch.testing.assert_close(whole.x0, x)


def test_a_data_set_whose_samples_cannot_be_put_together_is_refused() -> None:
    pairs = TeacherPairs(PairsConfig(count=4, steps=1), Uneven(), Teacher(TinyBackbone()))
    with pytest.raises(FewstepError, match="data set Uneven cannot serve pairs: its samples cannot be put together"):
        pairs.prepare(CPU)


class Stop(Exception):
    pass


def test_an_interrupted_sampling_goes_on_where_it_stopped(cache: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        assert (total, what) == (10, "sampling the teacher")
        if done >= 8:
            raise Stop

    unbroken = prepared(toy()).batch(list(range(10)), DRAWS)
    (folder,) = (cache / "pairs").iterdir()
    for file in folder.iterdir():
        file.unlink()
    broken, calls = toy(), list[int]()
    with pytest.raises(Stop):
        broken.prepare(CPU, stop)
    assert sorted(file.name for file in folder.iterdir()) == ["000000.safetensors", "000004.safetensors"]
    again = toy()
    again.teacher.backbone.register_forward_hook(lambda net, given, out: calls.append(len(given[1])))
    found = prepared(again).batch(list(range(10)), DRAWS)
    assert sum(calls) == 2 * 4 * 2  # samples, steps, guidance
    assert torch.equal(found.x0, unbroken.x0)
    assert torch.equal(found.noise, unbroken.noise)


def test_a_damaged_file_is_made_again(cache: Path) -> None:
    before = prepared(toy()).batch([0, 9], DRAWS)
    file = next((cache / "pairs").rglob("000000.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(prepared(toy()).batch([0, 9], DRAWS).x0, before.x0)


@pytest.mark.parametrize(("sampler", "guided"), [("euler", 1), ("euler", 2), ("heun", 2)])
def test_evaluations_are_counted_also_from_the_cache(sampler: str, guided: int) -> None:
    for _ in range(2):
        pairs = toy(sampler=sampler)
        pairs.teacher.guidance = Guidance(float(guided))
        assert prepared(pairs).evaluations == 10 * 4 * guided * (2 if sampler == "heun" else 1)


@pytest.mark.parametrize("what", ["steps", "seed", "sampler", "batch_size", "weights", "guidance", "rescale_t", "data"])
def test_other_pairs_have_another_place_in_the_cache(what: str, cache: Path) -> None:
    settings = {"steps": 5, "seed": 1, "sampler": "heun", "batch_size": 5}
    other = toy(**{what: settings[what]} if what in settings else {})
    if what == "weights":
        next(other.teacher.backbone.parameters()).data.mul_(1.1)
    elif what == "guidance":
        other.teacher.guidance = Guidance(3.0)
    elif what == "rescale_t":
        other.teacher.rescale_t = 2.0
    elif what == "data":
        points = ToyPoints(PointsConfig(size=20, held_out=1, seed=1), other.teacher.backbone)
        other = TeacherPairs(other.pairs, points, other.teacher)
    for pairs in (toy(), toy(count=12), other):
        prepared(pairs)
    assert len(list((cache / "pairs").iterdir())) == 2


def test_loads_are_those_of_the_samples_and_packing_by_a_budget_sees_them() -> None:
    class Loaded(ToyPoints):
        def loads(self) -> list[int]:
            return self.lengths[: len(self)].tolist()

    pairs = toy(packed=True)
    pairs.dataset = Loaded(pairs.dataset.config, pairs.dataset.backbone)
    prepared(pairs)
    assert pairs.loads() == [len(pairs.batch([i], DRAWS).x0) for i in range(10)]
    assert toy().loads() is None


TINY = {"objective": {"pairs": {"count": 24, "steps": 3, "batch_size": 8}}, "backbone": {"width": 8, "pretrain": 3}}


def run(method: str, out: Path, steps: int, data: dict[str, Any], **more: Any) -> fewstep.Run:
    train = {"steps": steps, "batch_size": 4, "accumulate": 2, "lr_schedule": "constant", "checkpoint_every": 3}
    config = {**TINY, "train": train, "data": {"size": 30, "held_out": 2, **data}}
    return fewstep.distill(method, "toy", out=out, config=config, **more)


def weights(found: fewstep.Run) -> dict[str, Tensor]:
    return load_file(found.folder / "student" / "model.safetensors")


@pytest.mark.parametrize("layout", ["dense", "packed"])
@pytest.mark.parametrize("method", ["kd", "reflow"])
def test_a_resumed_run_ends_with_the_same_bits_and_counts_the_pairs_once(
    method: str, layout: str, tmp_path: Path
) -> None:
    unbroken = run(method, tmp_path / "a", 6, {"layout": layout})
    run(method, tmp_path / "b", 3, {"layout": layout})
    resumed = run(method, tmp_path / "b", 6, {"layout": layout}, resume=True)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(unbroken).items())
    for found in (unbroken, resumed):
        assert found.metrics()[-1]["evaluations"]["teacher"] == {"forward": 24 * 3, "tangent": 0, "backward": 0}
        assert found.metrics()[-1]["evaluations"]["student"]["forward"] == 6 * 8


def test_a_run_shows_where_the_pairs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("kd", tmp_path / "a", 1, {})
    shown = capsys.readouterr().out
    assert "sampling the teacher 24/24" in shown
    assert f"24 pairs of the teacher: {tmp_path / 'cache' / 'pairs'}" in shown.replace("\n", "")


def test_the_keys_of_the_pairs_are_the_methods() -> None:
    resolved = resolve_stages("kd", "toy", layers=["objective.pairs.count=7"])[""]
    assert resolved.config.objective.pairs.count == 7
    with pytest.raises(FewstepError, match=r"objective\.pairs\.stpes.*did you mean .*steps"):
        resolve_stages("kd", "toy", layers=["objective.pairs.stpes=7"])


class Stored(Dataset):
    """Pairs from elsewhere."""

    provides = frozenset({"pairs"})

    def __len__(self) -> int:
        return 1

    def batch(self, indices: list[int], generator: torch.Generator) -> Pair:
        return Pair(torch.zeros(1, 2), Dense(1), noise=torch.ones(1, 2))


def test_a_data_set_of_pairs_is_taken_as_it_is() -> None:
    from fewstep_trajectory.config import KDConfig
    from fewstep_trajectory.pairs import KnowledgeDistillation

    method, teacher = KnowledgeDistillation(KDConfig()), Teacher(TinyBackbone())
    stored = Stored(None, Backbone())
    assert method.data(stored, teacher) is stored
    assert isinstance(method.data(Views(), teacher), TeacherPairs)
