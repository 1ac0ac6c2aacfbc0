"""Benches of two stages end to end: the same as doing it by hand, times by stage, students in pairs, noise by voxel."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import stages_helpers
import torch
from conftest import refusal
from fewstep_shapes3d.sparse.noise import voxel_noise
from rich.console import Console
from scipy import stats
from stages_helpers import COUNT, First, Second, Signs, Sums
from test_bench import info

from fewstep.benchmark import sampling
from fewstep.benchmark.api import BenchTable
from fewstep.benchmark.config import BenchConfig
from fewstep.benchmark.entrants import Entrant, Stage, line_up, student
from fewstep.benchmark.run import run_bench
from fewstep.benchmark.sampling import check_alike, chunks, prompts_on
from fewstep.cli import main
from fewstep.core.backbone import Teacher
from fewstep.core.batch import Batch, Condition
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Packed
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.core.suite import Suite
from fewstep.errors import FewstepError
from fewstep.plugins.registry import registry

QUICK = ("train.steps=2", "train.batch_size=4", "train.threads=1")


def mine(*networks: First, contracts: Sequence[Contract] = (Contract(steps=(1, 2)),) * 2) -> Entrant:
    """A student of both stages."""
    return student(
        "mine", [(one, info("made-up", contract)) for one, contract in zip(networks, contracts, strict=True)]
    )


def students() -> list[Entrant]:
    return [mine(First(seed=2), Second(seed=6))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if "duo" not in registry().names("backbone"):
        stages_helpers.install()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "240")
    return tmp_path


def two(first: Signs | None = None) -> list[Stage]:
    teachers = Teacher(First(seed=1), Guidance(2.0)), Teacher(Second(seed=5), Guidance(1.5))
    return [Stage("one", teachers[0], first or Signs()), Stage("two", teachers[1], Sums())]


def bench(out: Path, stages: list[Stage], seeds: tuple[int, ...] = (0, 1)) -> BenchTable:
    config = BenchConfig(steps=(1, 2), seeds=seeds, teacher_steps=3, device="cpu")
    return run_bench("duo", stages, students(), config, out, console=Console(quiet=True))


def table(folder: str | Path) -> list[dict[str, str]]:
    with Path(folder, "rows.csv").open() as file:
        return list(csv.DictReader(file))


def rows(report: BenchTable, **wanted: object) -> list[dict[str, str]]:
    return [row for row in table(report.folder) if all(row[key] == str(value) for key, value in wanted.items())]


def by_hand(stages: list[Stage], label: str, steps: int, seed: int) -> torch.Tensor:
    """Both stages with samplers alone: sample, look at the signs, sample a row for each."""
    (entrant,) = students()
    fields = [s.teacher if label == "teacher" else m.network for s, m in zip(stages, entrant.models, strict=True)]
    prompts, grid, path = stages[0].suite.prompts(), Contract().grid(steps), Step(0, Interpolant())
    x = euler(fields[0], stages[0].suite.noise(seed, prompts), prompts.cond, prompts.layout, grid, path)
    places = (x[..., 0] > 0).nonzero()
    layout = Packed.of_index(places[:, 0], places[:, 1:], COUNT)
    start = voxel_noise(seed, layout, torch.zeros(len(places), 3))
    y = euler(fields[1], start, stages[1].suite.prompts().cond, layout, grid, path)
    return torch.stack([layout.sum(y[:, i]) for i in range(3)], 1)


def test_a_bench_of_two_stages_is_what_sampling_by_hand_gives(tmp_path: Path) -> None:
    stages = two()
    report = bench(tmp_path / "b", stages)
    for seed in (0, 1):
        theirs = by_hand(stages, "teacher", 3, seed)
        for label, steps in (("teacher", 3), ("mine", 1), ("mine", 2)):
            ours = by_hand(stages, label, steps, seed)
            expected = {"size": float(ours.norm()), "far": float((ours - theirs).norm())}
            for metric, value in expected.items():
                (row,) = rows(report, label=label, steps=steps, seed=seed, metric=metric)
                assert float(row["value"]) == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_evaluations_times_and_contracts_are_of_both_stages(tmp_path: Path) -> None:
    report = bench(tmp_path / "b", two())
    (teacher, *_), (mine, *_) = (rows(report, label=label, metric="size") for label in ("teacher", "mine"))
    assert (float(teacher["nfe"]), float(mine["nfe"])) == (3 * 2 + 3 * 2, 1 + 1)
    assert float(teacher["guidance"]) == 2.0  # the larger of 2 and 1.5
    parts = ["condition", "flow_one", "decode_one", "flow_two", "decode_two"]
    for label, steps in (("teacher", 3), ("undistilled", 1), ("mine", 2)):
        found = rows(report, label=label, steps=steps, seed=0)
        assert [r["metric"] for r in found if r["metric"].startswith("seconds_")] == [f"seconds_{p}" for p in parts]
    lines = {(line.label, line.steps, line.metric): line.value for line in report.lines}
    flow = [
        sum(lines[name, steps, f"seconds_flow_{s}"] for s in ("one", "two"))
        for name, steps in (("teacher", 3), ("mine", 1))
    ]
    assert lines["mine", 1, "speedup_flow"] == pytest.approx(flow[0] / flow[1])
    whole = [sum(lines[name, steps, f"seconds_{p}"] for p in parts) for name, steps in (("teacher", 3), ("mine", 1))]
    assert lines["mine", 1, "speedup_total"] == pytest.approx(whole[0] / whole[1])
    text = (report.folder / "table.md").read_text()
    assert "| condition ms | flow one ms | decode one ms | flow two ms | decode two ms | x flow | x whole |" in text
    record = json.loads((report.folder / "environment.json").read_text())
    assert record["teacher"]["then"]["contract"]["guidance"] == 1.5
    assert record["students"][0]["then"]["label"] == "mine"


def test_the_truth_is_that_of_the_last_stage(tmp_path: Path) -> None:
    report = bench(tmp_path / "b", two())
    prompts = Sums().prompts()
    expected = float(Sums().decode(prompts.x0, prompts.layout).norm())
    (row,) = rows(report, label="truth, decoded", metric="size")
    assert float(row["value"]) == pytest.approx(expected, rel=1e-6)


def test_a_step_count_is_made_for_only_if_both_contracts_name_it() -> None:
    contracts = Contract(steps=(1, 2)), Contract(steps=(2,), sampler="consistency")
    entrant = mine(First(), Second(), contracts=contracts)
    assert [one.made_for(steps) for one, steps in line_up(two(), [entrant], (1, 2), 25)[-2:]] == [False, True]
    assert entrant.samplers == "euler+consistency"


def test_prompts_that_do_not_belong_together() -> None:
    batch = Signs().prompts()
    with pytest.raises(FewstepError, match="7 and 2 held-out samples"):
        check_alike([batch, Sums().prompts(2)])
    turned = Batch(batch.x0, batch.layout, Condition(batch.cond.tokens.roll(1, 0)))
    with pytest.raises(FewstepError, match="other conditions"):
        check_alike([batch, turned])


def test_a_stage_that_no_other_follows_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    class Alone(Signs):
        following = Suite.following

        def decode(self, x: torch.Tensor, layout: object) -> torch.Tensor:
            raise AssertionError

    with pytest.raises(FewstepError, match="Alone: no stage is sampled on its objects; accepted: one --stage alone"):
        bench(tmp_path / "b", two(Alone()))
    assert not (tmp_path / "b").exists()


def test_structures_that_come_out_empty_are_measured_all_the_same(tmp_path: Path) -> None:
    class Nothing(Signs):
        def decode(self, x: torch.Tensor, layout: object) -> torch.Tensor:
            return torch.zeros(len(x), 4, dtype=torch.bool)

    report = bench(tmp_path / "b", two(Nothing()), seeds=(0,))
    assert {float(row["value"]) for row in rows(report, label="mine", metric="size")} == {0.0}
    assert {float(row["nfe"]) for row in rows(report, label="mine", steps=2)} == {2.0}  # the first stage's alone


class TestNoise:
    def layout(self, order: list[int] | None = None) -> Packed:
        grid = torch.stack(torch.meshgrid(*[torch.arange(12)] * 3, indexing="ij"), -1).reshape(-1, 3)
        grid = grid if order is None else grid[order]
        return Packed.of_lengths([len(grid), 5], torch.cat([grid, grid[:5]]))

    def test_it_belongs_to_the_voxel_and_to_nothing_else(self) -> None:
        whole = self.layout()
        noise = voxel_noise(3, whole, torch.zeros(whole.rows, 4))
        some = torch.randperm(12**3, generator=torch.Generator().manual_seed(0))[:100]
        part = self.layout(some.tolist())
        assert torch.equal(voxel_noise(3, part, torch.zeros(part.rows, 4))[:100], noise[some])
        other_sample, other_seed = noise[-5:], voxel_noise(4, whole, noise)
        assert not torch.isclose(other_sample, noise[:5]).any()
        assert not torch.isclose(other_seed, noise).all(1).any()

    def test_it_is_standard_normal_and_uncorrelated(self) -> None:
        layout = self.layout()
        noise = voxel_noise(0, layout, torch.zeros(layout.rows, 6))[: 12**3]
        assert stats.kstest(noise.flatten().double().numpy(), "norm").pvalue > 0.01
        grid = noise.view(12, 12, 12, 6)
        pairs = [(grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[:, :, 1:], grid[:, :, :-1])]
        pairs += [(noise[:, 1:], noise[:, :-1]), (noise, voxel_noise(1, layout, noise)[: 12**3])]
        for a, b in pairs:  # a sum of n products of independent normals has deviation sqrt(n)
            assert abs(float((a * b).sum())) < 4 * a.numel() ** 0.5

    def test_other_suites_have_noise_of_the_seed_alone(self) -> None:
        batch = Batch(torch.zeros(6, 2), Packed.of_lengths([4, 2]))
        dense = Batch(torch.zeros(6, 2), Dense(6))
        assert torch.equal(Signs().noise(5, batch), Signs().noise(5, dense))
        with pytest.raises(FewstepError, match=r"layout: got 'Packed'; accepted: Packed, with coords"):
            voxel_noise(5, batch.layout, batch.x0)


def test_chunks_of_ragged_samples_hold_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 10)
    layout = Packed.of_lengths([4, 6, 0, 1, 30, 2, 8])
    found = [chunk.tolist() for chunk in chunks(Batch(torch.zeros(layout.rows, 3), layout))]
    assert found == [[0, 1, 2], [3], [4], [5, 6]]


def test_prompts_on_other_rows_keep_their_conditions() -> None:
    prompts, layout = Sums().prompts(3), Packed.of_lengths([1, 0, 4])
    found = prompts_on(layout, prompts)
    assert found.x0.shape == (5, 3)
    assert found.cond is prompts.cond


class TestCommand:
    """``fewstep bench --stage``."""

    @pytest.fixture
    def pair(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
        assert main(["distill", "-m", "mdt-vm", "-b", "duo", "--stage", "both", "--out", "pair", *QUICK]) == 0
        capsys.readouterr()
        return folder / "pair"

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        code = main(["bench", "-b", "duo", "--steps", "1", "--seeds", "0", "teacher_steps=2", *arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
        code = main(["bench", "-b", "duo", "--steps", "1", "--seeds", "0", *arguments])
        return refusal(code, *capsys.readouterr())

    def test_a_pair_and_the_shipped_ones(
        self, pair: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, other in (("first", {}), ("second", {"cm": pair / "second" / "student"})):
            shipped = {"mdt-vm": pair / name / "student", **other}
            monkeypatch.setitem(stages_helpers.SHIPPED, name, shipped)
        self.run(capsys, "--stage", "both", "--student", f"given={pair}", "--methods", "mdt-vm", "--out", "b")
        record = json.loads(Path("b/environment.json").read_text())
        assert record["backbone"] == "duo first+second"
        assert [(one["label"], one["then"]["label"]) for one in record["students"]] == [("mdt-vm",) * 2, ("given",) * 2]
        values = {row["label"]: row["value"] for row in table("b") if row["metric"] == "size"}
        assert values["given"] == values["mdt-vm"]
        message = self.refused(capsys, "--stage", "both", "--methods", "cm")
        assert "backbone 'duo' ships no student of method 'cm': accepted are mdt-vm" in message

    def test_one_stage_of_a_pair(self, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = self.run(capsys, "--stage", "second", "--student", "pair", "--out", "b")
        assert "mdt-vm" in out
        record = json.loads(Path("b/environment.json").read_text())
        assert record["backbone"] == "duo-second"
        assert "then" not in record["teacher"]

    def test_keys_of_one_stage(self, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A wider teacher of the second stage alone: another number of parameters, the same first stage."""
        message = self.refused(capsys, "--stage", "both", "second.backbone.widht=8", "--out", "b")
        assert "unknown key 'backbone.widht'" in message
        self.run(capsys, "--stage", "both", "second.backbone.width=8", "--out", "b")
        self.run(capsys, "--stage", "both", "--out", "c")
        values = [[row["value"] for row in table(place) if row["metric"] == "size"] for place in "bc"]
        assert values[0] != values[1]

    def test_folders_that_are_no_pair(self, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = self.refused(capsys, "--stage", "both", "--student", "pair/first")
        assert "holds no first, second; accepted: a folder with a student in each of first, second" in message
        message = self.refused(capsys, "--stage", "first", "--student", "pair/second")
        assert "a student of backbone 'duo-second'; accepted: one of 'duo'" in message
        message = self.refused(capsys, "--student", "none")
        assert "no such folder" in message
