"""A run that is killed at any moment ends with the very bits of an unbroken one; a damaged one says so."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import engine_helpers
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from fewstep.engine import session
from fewstep.engine.export import load_student
from fewstep.engine.store import STATE, TENSORS, Store
from fewstep.errors import FewstepError

KEYS = [
    "train.steps=40",
    "train.batch_size=3",
    "train.accumulate=2",
    "train.checkpoint_every=3",
    "train.log_every=4",
    "train.clip=adaptive",
    "train.clip_buffer=6",
    "train.lr=0.01",
    "train.lr_schedule=cosine",
    "train.warmup=5",
    "train.ema=[0.99]",
    "train.export=0.99",
    "train.threads=1",
    "train.device=cpu",
    "backbone.dropout=0.2",
]


class Host:
    """The worker process: start a run, kill it or let it end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "engine_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        out: Path,
        keys: list[str],
        objective: str,
        slow: float = 0.0,
        kill_after: float | None = None,
        once_writing: bool = False,
    ) -> int:
        """The exit status; negative for a signal. ``kill_after`` seconds count from the start, or ``once_writing`` from
        the first file that is being written, however busy the machine is."""
        before = set(out.rglob(".tmp-*"))
        request = {"out": str(out), "keys": keys, "objective": objective, "slow": slow, "resume": out.exists()}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        ended = threading.Event()

        def kill(after: float) -> None:
            while once_writing and not set(out.rglob(".tmp-*")) - before and not ended.wait(0.005):
                pass
            if not ended.wait(after):
                os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, args=(kill_after or 0,))
        if kill_after is not None:
            killer.start()
        status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        ended.set()
        if kill_after is not None:
            killer.join()
        return status


@pytest.fixture(scope="module")
def host():
    found = Host()
    yield found
    found.process.stdin.close()
    found.process.wait(10)


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def state_of(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = Store(out / "checkpoints").path(Store(out / "checkpoints").steps()[-1])
    scalars = json.loads((folder / STATE).read_text())["scalars"]
    return load_file(folder / TENSORS), {key: value for key, value in scalars.items() if key != "seconds"}


def same(a: Path, b: Path) -> None:
    """Weights, averages, moments, clip buffers, counters and metrics, bit for bit."""
    assert (a / "student/model.safetensors").read_bytes() == (b / "student/model.safetensors").read_bytes()
    (tensors_a, scalars_a), (tensors_b, scalars_b) = state_of(a), state_of(b)
    assert tensors_a.keys() == tensors_b.keys()
    assert all(torch.equal(tensors_a[key], tensors_b[key]) for key in tensors_a)
    assert scalars_a == scalars_b
    assert rows(a) == rows(b)
    assert [row["step"] for row in rows(a)] == list(range(4, 41, 4))
    assert not list(a.rglob(".tmp-*"))


@pytest.mark.parametrize(("objective", "slow"), [("tiny-regress", 0.0), ("tiny-critic", 0.02), ("tiny-transport", 0.0)])
def test_killed_at_random_moments_ends_bit_identical(host: Host, tmp_path: Path, objective: str, slow: float) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert host.run(whole, KEYS, objective) == 0
    draw, kills, latest = random.Random(objective), 0, 0.9 if slow else 0.2
    for _ in range(60):
        status = host.run(broken, KEYS, objective, slow, kill_after=draw.uniform(0.02, latest))
        assert status in (0, -signal.SIGKILL)
        kills += status == -signal.SIGKILL
        if status == 0 and kills >= 2:
            break
        if status == 0:  # the machine was too quick for the kills: from the start, with earlier ones
            shutil.rmtree(broken)
            kills, latest = 0, 0.6 * latest
    assert host.run(broken, KEYS, objective) == 0
    assert kills >= 2
    same(broken, whole)


def test_killed_inside_a_checkpoint_write(host: Host, tmp_path: Path) -> None:
    """A write takes most of the time here, so many kills fall into one; leftovers are seen and cleaned."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert host.run(whole, KEYS, "tiny-regress") == 0
    draw, leftovers = random.Random(7), 0
    for _ in range(12):
        before = set(broken.rglob(".tmp-*"))
        host.run(broken, KEYS, "tiny-regress", slow=0.1, kill_after=draw.uniform(0, 0.3), once_writing=True)
        leftovers += bool(set(broken.rglob(".tmp-*")) - before)
    assert leftovers >= 3
    assert host.run(broken, KEYS, "tiny-regress") == 0
    same(broken, whole)


@pytest.fixture(autouse=True)
def _installed() -> None:
    engine_helpers.install()


def begin(out: Path, *keys: str, objective: str = "tiny-regress", resume: bool = False, file: Any = None) -> Path:
    resolved = engine_helpers.resolve(objective, "tiny", layers=[*SHORT, *keys])
    return session.start(resolved, out, resume, Console(file=file or open(os.devnull, "w")))


SHORT = [
    "train.steps=6",
    "train.batch_size=2",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.threads=1",
    "train.device=cpu",
    "train.ema=[0.9]",
]


def test_half_a_row_and_rows_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    shutil.rmtree(out / "checkpoints/step-00000006")
    before = rows(out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    begin(out, resume=True)
    assert rows(out) == before
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5, 6]


def test_finished_run_resumes_to_the_same_student(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    weights = (out / "student/model.safetensors").read_bytes()
    begin(out, resume=True)
    assert (out / "student/model.safetensors").read_bytes() == weights
    begin(out, "train.export=0.9", resume=True)
    assert (out / "student/model.safetensors").read_bytes() != weights
    assert load_student(out)[1].weights == "0.9"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("name", [TENSORS, STATE])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_damaged_checkpoint_names_the_file_and_the_older_one(tmp_path: Path, name: str, damage: Any) -> None:
    out = begin(tmp_path / "run")
    damage(out / "checkpoints/step-00000006" / name)
    with pytest.raises(FewstepError) as caught:
        begin(out, resume=True)
    assert f"step-00000006/{name}" in str(caught.value)
    assert "older one of step 4" in str(caught.value)
    shutil.rmtree(out / "checkpoints/step-00000006")
    begin(out, resume=True)


def test_a_lone_damaged_checkpoint_says_there_is_no_older_one(tmp_path: Path) -> None:
    out = begin(tmp_path / "run", "train.keep=1")
    flip(out / "checkpoints/step-00000006" / TENSORS)
    with pytest.raises(FewstepError, match="no older one"):
        begin(out, "train.keep=1", resume=True)


def test_edited_state_is_noticed(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    file = out / "checkpoints/step-00000006" / STATE
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(FewstepError, match="changed since it was written"):
        begin(out, resume=True)


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    """A checkpoint that is whole but fits another network, as after a plugin's update."""
    out = begin(tmp_path / "run")
    store = Store(out / "checkpoints")
    newest = store.newest()
    assert newest is not None
    tensors = newest.tensors
    tensors["net/student/layers.0.weight"] = tensors["net/student/layers.0.weight"][:1]
    store.save(6, tensors, newest.config, newest.scalars)
    store.settle()
    with pytest.raises(
        FewstepError, match=re.escape(TENSORS) + r".*layers\.0\.weight: got \[1, 3\].*accepted \[8, 3\]"
    ):
        begin(out, resume=True)


def test_changed_config_is_refused_with_both_values(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    with pytest.raises(FewstepError) as caught:
        begin(out, "train.lr=0.5", "backbone.width=9", "seed=3", objective="tiny-ahead", resume=True)
    for line in (
        "method: the run has 'tiny-regress', given now is 'tiny-ahead'",
        "train.lr: the run has 0.0001, given now is 0.5",
        "backbone.width: the run has 8, given now is 9",
        "seed: the run has 0, given now is 3",
    ):
        assert line in str(caught.value)


def test_what_leaves_the_course_alone_may_change(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    begin(out, "train.checkpoint_every=1", "train.keep=5", "train.log_every=2", resume=True)


def test_longer_run_equals_one_that_was_long_from_the_start(tmp_path: Path) -> None:
    out, long = begin(tmp_path / "run"), begin(tmp_path / "long", "train.steps=9")
    begin(out, "train.steps=9", resume=True)
    assert (out / "student/model.safetensors").read_bytes() == (long / "student/model.safetensors").read_bytes()
    assert rows(out) == rows(long)
    with pytest.raises(FewstepError, match=r"train\.steps: got 6; accepted: at least 9"):
        begin(out, resume=True)


@pytest.mark.parametrize(
    ("objective", "key"), [("tiny-ahead", "train.lr_schedule=constant"), ("tiny-regress", "train.lr_schedule=cosine")]
)
def test_steps_that_a_schedule_looked_at_may_not_change(tmp_path: Path, objective: str, key: str) -> None:
    out = begin(tmp_path / "run", key, objective=objective)
    with pytest.raises(FewstepError, match=r"train\.steps: the run has 6, given now is 9[\s\S]*a schedule of this run"):
        begin(out, key, "train.steps=9", objective=objective, resume=True)


def test_run_killed_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    whole, out = begin(tmp_path / "whole"), begin(tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(out / "student")
    with pytest.raises(FewstepError, match=r"train\.lr"):
        begin(out, "train.lr=0.5", resume=True)
    begin(out, resume=True)
    assert (out / "student/model.safetensors").read_bytes() == (whole / "student/model.safetensors").read_bytes()
    assert rows(out) == rows(whole)


def test_nothing_is_overwritten_and_nothing_is_resumed_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FewstepError, match="there is no run"):
        begin(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()
    out = begin(tmp_path / "run")
    with pytest.raises(FewstepError, match="exists; pass --resume to continue it or another --out"):
        begin(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(FewstepError, match="not the folder of a run"):
        begin(tmp_path / "other", resume=True)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    from fewstep.engine.folder import locked

    out = begin(tmp_path / "run")
    with locked(out), pytest.raises(FewstepError, match="another process trains there"):
        begin(out, resume=True)
    begin(out, resume=True)


def test_no_pickle_in_a_run(tmp_path: Path) -> None:
    out = begin(tmp_path / "run")
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".jsonl", ".safetensors"}
