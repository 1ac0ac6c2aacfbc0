"""The search over settings: fair draws, equal budgets, rounds, going on after an interruption, and its tables."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fewstep
from benchmarks.quality import budget, search
from benchmarks.quality.budget import evaluations, iterations
from benchmarks.quality.search import Search
from benchmarks.quality.search_plan import Plan, Trial, drawn
from benchmarks.quality.search_tables import summary
from fewstep.config.base import merge, validate
from fewstep.engine.folder import locked
from fewstep.errors import FewstepError

BUDGET = 1200
LRS = [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4]


def plan_of(**keys: Any) -> Plan:
    values: dict[str, Any] = {
        "backbone": "toy",
        "budget": BUDGET,
        "trials": 3,
        "set": {"backbone": {"pretrain": 0, "width": 8}, "train": {"batch_size": 4, "checkpoint_every": 10}},
        "judge": {"steps": [1, 2], "seeds": [0], "limit": 50, "teacher_steps": 3, "data": {"seed": 1}},
        "space": {"cm": {"train.lr": LRS}, "mdt-vm": {"train.lr": LRS}},
    }
    return validate(Plan, values | keys)


def by_rate(trial: Trial, plan: str, out: Path) -> dict[str, Any]:
    """A trial without training: its value is its learning rate, and seeds add noise without mean."""
    lr = json.loads(trial.settings)["train.lr"]
    row = {"id": trial.id, "method": trial.method, "seed": trial.seed, "settings": trial.settings}
    return row | {"at_1": lr + 1e-6 * (trial.seed % 2), "at_2": 0.0}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "carry_out", by_rate)


def test_draws_are_distinct_seeded_and_as_many_for_each_method() -> None:
    plan = plan_of()
    for method in plan.space:
        trials = drawn(plan, method)
        assert len({trial.settings for trial in trials}) == len(trials) == 3
        assert trials == drawn(plan, method)
    assert drawn(plan, "cm") != drawn(plan_of(seed=1), "cm")
    assert len(drawn(plan_of(trials=None), "cm")) == len(LRS)


def test_a_plan_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match=r"space\.cm: 2 combinations; accepted: at least trials = 3"):
        Search(plan_of(space={"cm": {"train.lr": [1e-3, 1e-4]}}), tmp_path / "a")
    with pytest.raises(FewstepError, match=r"objective\.lambda_vd"):
        Search(plan_of(space={"mdt-vd": {"objective.lambda_vdd": LRS}}), tmp_path / "a")
    with pytest.raises(FewstepError, match="trials"):
        plan_of(trails=3)
    assert not (tmp_path / "a").exists()


def test_trials_spend_the_budget_and_are_recorded(tmp_path: Path) -> None:
    """Two at a time. VD in half of the run and a critic cost more an iteration, and the run is shorter for it."""
    keys = {"objective.vd_after": [0.5], "objective.score": ["critic"], "objective.critic_ratio": [5]}
    plan = plan_of(trials=1, space={"cm": {"train.lr": [1e-3]}, "mdt-vd": keys})
    assert Search(plan, tmp_path).run(2, float("inf"))
    rows = Search(plan, tmp_path)
    rows.begin()
    undistilled, *trials = rows.rows.values()
    assert [float(undistilled[key]) > 0 for key in ("at_1", "at_2")] == [True, True]
    assert {row["method"] for row in trials} == {"cm", "mdt-vd"}
    for row in trials:
        assert int(row["evaluations"]) == pytest.approx(BUDGET, rel=0.06)
        assert float(row["at_1"]) > 0
        assert json.loads(row["versions"])["torch"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_the_best_of_each_method_get_further_seeds(tmp_path: Path) -> None:
    plan = plan_of(trials=None, rounds=[{"keep": 3, "seeds": 2}, {"keep": 1, "seeds": 4}])
    found = Search(plan, tmp_path)
    assert found.run(1, float("inf"))
    for method in plan.space:
        seeds = dict.fromkeys(LRS, 0)
        for row in found.rows.values():
            if row["method"] == method:
                seeds[json.loads(row["settings"])["train.lr"]] += 1
        assert list(seeds.values()) == [4, 2, 2, 1, 1, 1]
    text = summary(list(found.rows.values()), plan.space, "at_1", True)
    best = next(line for line in text.splitlines() if line.startswith("| cm |"))
    assert best.split(" | ")[1:3] == ["4", "0.0001005 ± 5.774e-07"]
    assert "| train.lr | `0.0003` | 1 | 0.0003 | 0.0003 |" in text


@pytest.mark.usefixtures("quick")
def test_a_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    assert not Search(plan, tmp_path).run(1, 0.0)
    calls: list[Trial] = []

    def dies(trial: Trial, plan: str, out: Path) -> dict[str, Any]:
        calls.append(trial)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_rate(trial, plan, out)

    monkeypatch.setattr(search, "carry_out", dies)
    with pytest.raises(KeyboardInterrupt):
        Search(plan, tmp_path).run(1, float("inf"))
    assert Search(plan, tmp_path).run(1, float("inf"))
    assert len(calls) == 7
    assert len(set(calls)) == 6
    assert Search(plan, tmp_path).run(1, float("inf"))
    assert len(calls) == 7
    file = tmp_path / "trials.csv"
    file.write_text(file.read_text()[:-40])  # killed within the last row
    assert Search(plan, tmp_path).run(1, float("inf"))
    assert len(calls) == 8
    with pytest.raises(FewstepError, match="another plan"):
        Search(plan_of(budget=BUDGET + 1), tmp_path).run(1, 0.0)
    with locked(tmp_path), pytest.raises(FewstepError, match="another process trains there"):
        Search(plan, tmp_path).run(1, 0.0)


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(trials=1, space={"cm": {"train.lr": [1e-3]}})
    (trial,) = drawn(plan, "cm")
    whole = search.carry_out(trial, plan.model_dump_json(), tmp_path / "whole")
    distill, starts = search.fewstep.distill, []

    def stops(*args: Any, **keys: Any) -> Any:
        def leave(row: dict[str, Any]) -> None:
            if row["step"] == 40:
                raise KeyboardInterrupt

        starts.append(keys.get("resume", False))
        return distill(*args, **keys, callbacks=[leave] if len(starts) == 3 else [])

    monkeypatch.setattr(search.fewstep, "distill", stops)
    with pytest.raises(KeyboardInterrupt):
        search.carry_out(trial, plan.model_dump_json(), tmp_path / "cut")
    again = search.carry_out(trial, plan.model_dump_json(), tmp_path / "cut")
    assert starts == [False, False, False, True]
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("method", "keys", "cost", "before"),
    [
        ("cm", {}, 5 * 4, 0),  # the teacher and, at two times, the student forward; a backward pass
        ("kd", {"objective": {"pairs": {"count": 10, "steps": 3}}}, 3 * 4, 10 * 3),
        ("mdt-vd", {"objective": {"vd_after": 0.5}}, 0.5 * 5 * 4 + 0.5 * 11 * 4, 0),
    ],
)
def test_a_budget_is_spent_whatever_it_is_spent_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, keys: dict[str, Any], cost: float, before: int
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    small = {"backbone": {"pretrain": 0, "width": 8}, "train": {"batch_size": 4}}
    distill = partial(fewstep.distill, method, "toy")
    config = merge(small, keys)
    assert iterations(BUDGET, distill, config, tmp_path / "probe") == round((BUDGET - before) / cost)
    assert not (tmp_path / "probe").exists()
    steps = round((BUDGET - before) / cost)
    run = distill(config=merge(config, {"train": {"steps": steps}}), out=tmp_path / "run")
    assert abs(evaluations(run) - BUDGET) <= cost


def test_a_budget_that_is_spent_before_the_first_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    keys = ["objective.pairs.count=10", "objective.pairs.steps=3", "train.batch_size=4", "backbone.pretrain=0"]
    words = ["budget", "{}", "--method", "kd", "--backbone", "toy", *keys]
    monkeypatch.setattr(sys, "argv", [word.format(54) for word in words])
    budget.main()
    assert capsys.readouterr().out == "2\n"
    monkeypatch.setattr(sys, "argv", [word.format(35) for word in words])
    with pytest.raises(SystemExit, match="budget: got 35; accepted: more than 42: 30 before the first iteration"):
        budget.main()


def test_a_failed_trial_is_a_result(tmp_path: Path) -> None:
    plan = plan_of(trials=1, space={"cm": {"train.lr": [1.0], "train.clip": ["none"], "objective.interval": [1e-9]}})
    (trial,) = drawn(plan, "cm")
    row = search.carry_out(trial, plan.model_copy(update={"budget": 40}).model_dump_json(), tmp_path)
    assert ("note" in row) != ("at_1" in row)


@pytest.mark.usefixtures("quick")
def test_failed_trials_rank_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trial: Trial, plan: str, out: Path) -> dict[str, Any]:
        row = by_rate(trial, plan, out)
        return row if row["at_1"] > 3e-4 else {k: v for k, v in row.items() if k[:2] != "at"} | {"note": "not finite"}

    monkeypatch.setattr(search, "carry_out", fails)
    plan = plan_of(trials=None, rounds=[{"keep": 1, "seeds": 2}], space={"cm": {"train.lr": LRS}})
    found = Search(plan, tmp_path)
    assert found.run(1, float("inf"))
    assert [json.loads(row["settings"])["train.lr"] for row in found.rows.values() if row["seed"] == 1] == [4e-4]
