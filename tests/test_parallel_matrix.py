"""Runs of several processes, all combinations: kinds, numbers of processes, methods, data, and faults of each sort."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from parallel_faults import at, die, fail, freeze, hang
from parallel_helpers import CONTEXT, apart, distilled, start, toy
from torch import nn
from torch.distributed.fsdp import fully_shard

from fewstep.engine.parallel import whole
from fewstep.engine.store import Store

pytestmark = pytest.mark.slow
FSDP = "parallel.kind=fsdp"


def unseen(*keys: str) -> tuple[str, ...]:
    """Keys of a run that has one checkpoint, after 10 of its 20 steps."""
    return ("train.checkpoint_every=10", *keys)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process by method and layout."""
    folder = tmp_path_factory.mktemp("alone")
    for method in ("mdt-vd", "cm", "dmd2"):
        for layout in ("dense", "packed"):
            assert distilled(1, folder / f"{method}-{layout}", method, f"data.layout={layout}") == [0]
    return folder


@pytest.mark.parametrize("layout", ["dense", "packed"])
@pytest.mark.parametrize("method", ["mdt-vd", "cm", "dmd2"])
@pytest.mark.parametrize(("ranks", "kind"), [(2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp"), (4, "hsdp")])
def test_any_number_trains_what_one_trains(
    alone: Path, tmp_path: Path, ranks: int, kind: str, method: str, layout: str
) -> None:
    keys = (FSDP, "parallel.mesh=[2,2]") if kind == "hsdp" else (f"parallel.kind={kind}",)
    assert distilled(ranks, tmp_path / "run", method, f"data.layout={layout}", *keys) == [0] * ranks
    assert apart(alone / f"{method}-{layout}", tmp_path / "run") < 1e-6


@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("before", [1, 2, 4])
def test_any_number_goes_on_from_any(alone: Path, tmp_path: Path, before: int, after: int) -> None:
    keys = unseen("data.layout=packed", *([FSDP] if before > 1 else []))
    out = tmp_path / "run"
    run = toy(before, out, "dmd2", *keys, before=partial(at, 14, before - 1, die))
    assert run.wait()[before - 1] == -signal.SIGKILL
    words = ["distill", "--resume", "--out", str(out), f"parallel.kind={'fsdp' if after > 1 else 'none'}"]
    assert start(after, tmp_path / "again", *words).wait() == [0] * after
    assert apart(alone / "dmd2-packed", out) < 1e-6


def test_kills_at_random_moments(alone: Path, tmp_path: Path) -> None:
    """Any process, at any time: the run goes on until it is done."""
    draws, out = random.Random(0), tmp_path / "run"
    keys = ["train.checkpoint_every=2", FSDP]
    killed = 0
    while not (out / "student").is_dir():
        words = ("distill", "--resume", "--out", str(out))
        run = start(2, tmp_path / "printed", *words) if out.is_dir() else toy(2, out, "dmd2", *keys)
        time.sleep(draws.uniform(1, 12))
        if killed < 20 and not (out / "student").is_dir():
            run.processes[draws.randrange(2)].kill()
            killed += 1
        codes = run.wait()
        assert set(codes) <= {0, 2, -signal.SIGKILL}
    assert apart(alone / "dmd2-dense", out) < 1e-6


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("victim", "act", "text"),
    [
        (1, die, "rank 1: the process has died or is frozen"),
        (0, die, "rank 0: the process has died or is frozen"),
        (2, freeze, "rank 2: the process has died or is frozen"),
        (3, hang, "rank 3: no answer for 3 seconds (see parallel.timeout)"),
        (2, fail, "rank 2: a file of the data set is damaged"),
    ],
)
def test_what_ended_is_named(tmp_path: Path, kind: str, victim: int, act: object, text: str) -> None:
    keys = unseen(f"parallel.kind={kind}", "parallel.timeout=3")
    run = toy(4, tmp_path / "run", "mdt-vd", *keys, before=partial(at, 14, victim, act))
    others = [process for rank, process in enumerate(run.processes) if rank != victim]
    for process in others:
        process.join(120)
        assert process.exitcode == 2
    run.wait(0)
    printed = run.printed(1 if victim == 0 else 0)
    assert f"error: step 14, {text}. The checkpoint of step 10" in printed
    assert "Traceback" not in printed
    assert Store(tmp_path / "run" / "checkpoints").steps() == [10]


def test_exports_are_the_same_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    toy(4, out, "mdt-vd", *unseen(FSDP, "train.export=0.9")).wait()
    first = (out / "student" / "model.safetensors").read_bytes()
    for ranks in (1, 2):
        (out / "student" / "model.safetensors").unlink()
        words = ("distill", "--resume", "--out", str(out), "parallel.kind=auto")
        assert start(ranks, tmp_path / "again", *words).wait() == [0] * ranks
        assert (out / "student" / "model.safetensors").read_bytes() == first


def _scaled(rank: int, port: int) -> None:
    """An overflow in one process's shard has to stop the update in all."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    layer = nn.Linear(4, 4)
    fully_shard(layer)
    adam, scaler = torch.optim.AdamW(layer.parameters()), torch.amp.GradScaler("cpu")
    scaler.scale(layer(torch.ones(1, 4)).sum()).backward()
    if rank:
        layer.weight.grad.to_local().fill_(torch.inf)
    before = whole(layer.weight).clone()
    scaler.step(adam)
    scaler.update()
    assert torch.equal(whole(layer.weight), before)
    assert scaler.get_scale() == 2.0**15


def test_an_overflow_in_one_shard_stops_all() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [CONTEXT.Process(target=_scaled, args=(rank, store.port)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
