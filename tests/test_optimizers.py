"""``train.optimizer``: each kind of AdamW against plain AdamW, its resume, its bytes, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_helpers import trainer
from parallel_helpers import apart, distilled, toy
from torch import Tensor, nn

from fewstep.cli import main
from fewstep.config.train import TrainConfig
from fewstep.core.objective import NetSpec
from fewstep.engine.optim import NetOptimizer, adamw, state_bytes
from fewstep.errors import FewstepError


def available(kind: str) -> str:
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    return kind


def fitted(kind: str, steps: int = 20) -> tuple[Tensor, NetOptimizer]:
    """A matrix of 80 x 80 and a vector after some updates towards fixed targets."""
    torch.manual_seed(0)
    weights = {"matrix": nn.Parameter(torch.randn(80, 80)), "vector": nn.Parameter(torch.randn(80))}
    targets = {name: torch.randn_like(p) for name, p in weights.items()}
    optimizer = NetOptimizer("student", weights, NetSpec(), TrainConfig(optimizer=kind, lr=0.01, weight_decay=0.1))
    for step in range(steps):
        sum((p - targets[name]).square().sum() for name, p in weights.items()).backward()  # type: ignore[union-attr]
        optimizer.update(step, torch.amp.GradScaler("cpu", enabled=False))
    return torch.cat([p.detach().flatten() for p in weights.values()]), optimizer


@pytest.mark.parametrize(("kind", "bound"), [("fused", 1e-6), ("adamw8bit", 0.05)])
def test_updates_are_those_of_adamw(kind: str, bound: float) -> None:
    start, plain, other = fitted("adamw", 0)[0], fitted("adamw")[0], fitted(available(kind))[0]
    assert float((other - plain).norm() / (plain - start).norm()) < bound


@pytest.mark.parametrize("kind", ["adamw", "fused", "adamw8bit"])
def test_bytes_are_those_of_the_states(kind: str) -> None:
    _, optimizer = fitted(available(kind), 1)
    states = [state for p in optimizer.named.values() for state in optimizer.adam.state[p].items()]
    held = [value for key, value in states if key != "step" and not key.startswith("qmap")]  # one table for all
    assert state_bytes(kind, optimizer.named.values()) == sum(x.numel() * x.element_size() for x in held)
    if kind == "adamw8bit":
        assert state_bytes(kind, optimizer.named.values()) == 2 * (6400 + 4 * 25) + 8 * 80


@pytest.mark.parametrize("kind", ["fused", "adamw8bit"])
def test_a_resumed_run_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    keys = ["train.steps=4", "train.checkpoint_every=2", "train.batch_size=4", "train.device=cpu", "train.threads=1"]
    keys += ["backbone.pretrain=0", "backbone.width=64", "data.size=64", f"train.optimizer={available(kind)}"]
    assert main(["distill", "-m", "mdt-vd", "-b", "toy", "-o", str(tmp_path / "run"), *keys]) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/student")
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000004")
    assert main(["distill", "--resume", "-o", str(tmp_path / "again")]) == 0
    assert apart(tmp_path / "run", tmp_path / "again") == 0
    states = [(tmp_path / run / "checkpoints/step-00000004/state.safetensors") for run in ("run", "again")]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_moments_of_another_network_are_refused() -> None:
    optimizer = fitted("adamw", 1)[1]
    state = optimizer.state()
    with pytest.raises(FewstepError, match=r"moments/matrix/exp_avg: got \[3\], accepted \[80, 80\]"):
        optimizer.load({**state, "moments/matrix/exp_avg": torch.zeros(3)})
    with pytest.raises(FewstepError, match=r"moments/other/exp_avg: got \[3\], accepted nothing of this name"):
        optimizer.load({**state, "moments/other/exp_avg": torch.zeros(3)})


def test_without_bitsandbytes_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    words = ["train.optimizer=adamw8bit", "backbone.pretrain=0", "train.device=cpu"]
    assert main(["distill", "-m", "mdt-vd", "-b", "toy", "-o", str(tmp_path / "run"), *words]) == 2
    assert "bitsandbytes is not installed; to install it: pip install -e '.[optim]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_device_lacks_is_refused_at_the_start() -> None:
    with pytest.raises(FewstepError, match=r"train.optimizer: got 'fused'; accepted: adamw on meta"):
        adamw([nn.Parameter(torch.zeros(3, device="meta"))], 1e-3, TrainConfig(optimizer="fused"))


def test_8_bit_states_are_not_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    def sharded(*_: Any) -> Any:
        return SimpleNamespace(mesh="of two", kind="fsdp")

    monkeypatch.setattr("fewstep.engine.setup.Parallel", sharded)
    with pytest.raises(FewstepError, match=r"train.optimizer: got 'adamw8bit'; accepted: .*parallel.kind=ddp"):
        trainer(optimizer="adamw8bit")


@pytest.mark.slow
def test_sharded_fused_adamw_is_that_of_one_process(tmp_path: Path) -> None:
    keys = ("train.steps=6", "train.checkpoint_every=3", "train.optimizer=fused")
    assert distilled(1, tmp_path / "one", "mdt-vd", *keys) == [0]
    assert distilled(2, tmp_path / "two", "mdt-vd", *keys, "parallel.kind=fsdp") == [0, 0]
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-6
    shutil.rmtree(tmp_path / "two/student")
    shutil.rmtree(tmp_path / "two/checkpoints/step-00000006")
    assert main(["distill", "--resume", "-o", str(tmp_path / "two"), "parallel.kind=auto"]) == 0
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-6


@pytest.mark.slow
def test_8_bit_states_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    keys = ("train.steps=6", "train.optimizer=adamw8bit", "backbone.width=64")
    assert distilled(1, tmp_path / "one", "mdt-vd", *keys) == [0]
    assert toy(2, tmp_path / "two", "mdt-vd", *keys, "parallel.kind=ddp").wait() == [0, 0]
    assert apart(tmp_path / "one", tmp_path / "two") < 1e-3
