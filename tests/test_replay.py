"""Recorded calls in sampling; on a CPU a traced graph stands in for CUDA's: fixed addresses, and no Python."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.models import SparseStructureFlowModel
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fewstep.core.backbone import Guidance, Teacher
from fewstep.core.batch import Condition
from fewstep.core.layout import Dense
from fewstep.core.objective import Step
from fewstep.core.samplers import euler
from fewstep.ops import replay
from fewstep.ops.economy import economy, on

GRID = [1.0, 0.7, 0.4, 0.2, 0.1, 0.0]
STEPS = len(GRID) - 1


def traced(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    graph = make_fx(run)()
    output = run()
    return lambda: output.copy_(graph()), output  # type: ignore[return-value]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where to compute, with ``graphs`` switched on; tensors on a CPU count as a GPU's."""
    monkeypatch.setenv("FEWSTEP_ECONOMY", "all")
    if torch.cuda.is_available():
        return "cuda"
    monkeypatch.setattr(replay, "free_gpu", lambda tensors: True)
    monkeypatch.setattr(replay, "record", traced)
    return "cpu"


@pytest.fixture
def flow(device: str) -> StructureFlow:
    torch.manual_seed(0)
    small: dict[str, Any] = {"model_channels": 32, "cond_channels": 16, "num_blocks": 2, "num_heads": 2}
    made = StructureFlow(SparseStructureFlowModel(4, 4, out_channels=4, **small)).to(device)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.15)
    return made.eval().requires_grad_(False)


def counted(module: nn.Module) -> list[int]:
    """Grows with each call of the module from Python."""
    seen: list[int] = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def sampled(field: Any, seed: int, samples: int = 2) -> Tensor:
    network = field.backbone if isinstance(field, Teacher) else field
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    noise, tokens = (torch.randn(samples, *s, generator=generator).to(device) for s in ((4, 4, 4, 4), (5, 16)))
    return euler(field, noise, Condition(tokens), Dense(samples), GRID, Step(0, network.interpolant))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_the_same_and_python_is_spared(flow: StructureFlow, guidance: float) -> None:
    field = Teacher(flow, Guidance(guidance))
    with economy("blank", "keys"):
        wanted = [sampled(field, seed) for seed in range(3)]
    seen = counted(flow.model)
    for seed in range(3):  # another condition and other noise each time
        torch.testing.assert_close(sampled(field, seed), wanted[seed], rtol=1e-5, atol=1e-5)
    kinds = 1 if guidance == 1.0 else 2  # with the condition, and with the blank one
    assert len(seen) <= kinds * (replay.AFTER + 3) < 3 * STEPS * kinds  # as they are, recorded (twice here), compared


def test_changed_weights_are_seen(flow: StructureFlow) -> None:
    sampled(flow, 0)
    for change in (lambda p: p.mul_(1.3), lambda p: setattr(p, "data", 1.1 * p.data)):  # in place, and elsewhere
        for parameter in flow.parameters():
            change(parameter)
        with economy():
            wanted = sampled(flow, 1)
        torch.testing.assert_close(sampled(flow, 1), wanted, rtol=1e-5, atol=1e-5)


def test_other_shapes_are_other_graphs_and_few_are_kept(flow: StructureFlow) -> None:
    for samples in (1, 2, 3, 1, 4, 5, 2):
        with economy():
            wanted = sampled(flow, samples, samples)
        torch.testing.assert_close(sampled(flow, samples, samples), wanted, rtol=1e-5, atol=1e-5)
    assert len(replay._MODULES[flow].graphs) == replay.KEPT


def test_graphs_go_with_their_module(flow: StructureFlow) -> None:
    sampled(flow, 0)
    kept = weakref.ref(replay._MODULES[flow])
    assert kept() is not None
    module = nn.Linear(2, 2)
    held = weakref.ref(_recorded(module))
    assert held() is not None
    del module
    gc.collect()
    assert held() is None


def _recorded(module: nn.Module) -> replay.Recordings:
    repeated(replay.AFTER + 1, module, torch.sin, torch.ones(2))
    return replay._MODULES[module]


def repeated(times: int, module: nn.Module, function: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
    with replay.sampling():
        return [replay.replayed(module, function, x) for _ in range(times)]


class Cached:
    """Something that a cache may drop."""


@pytest.mark.usefixtures("device")
def test_what_a_graph_reads_lives_as_long_as_it() -> None:
    module, cache, x = nn.Linear(2, 2), [Cached()], torch.ones(2)

    def function(y: Tensor) -> Tensor:
        if cache:
            replay.hold(cache[0])
        return y + 1

    repeated(replay.AFTER + 1, module, function, x)
    alive = weakref.ref(cache.pop())
    assert alive() is not None
    replay._MODULES.clear()
    gc.collect()
    assert alive() is None


@pytest.mark.usefixtures("device")
def test_a_recording_that_is_wrong_is_not_used() -> None:
    module, x, turns = nn.Linear(2, 2), torch.ones(2), [0.0]

    def function(y: Tensor) -> Tensor:  # what it does depends on more than its input
        turns[0] += 1
        return turns[0] * y

    with pytest.warns(UserWarning, match="off by"):
        found = repeated(replay.AFTER + 2, module, function, x)
    assert found[-1][0] == turns[0]


def test_what_cannot_be_recorded_runs_as_it_is(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "record", refused)
    module, x = nn.Linear(2, 2).to(device), torch.ones(2, device=device)
    with pytest.warns(UserWarning, match="not permitted") as said:
        found = repeated(replay.AFTER + 4, module, module, x)
    assert all(torch.equal(one, module(x)) for one in found)
    assert len(said) == 1


def test_only_in_sampling_without_gradients_and_where_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, device=device)
    assert not replay.recordable(x)
    with replay.sampling():
        assert replay.recordable(x)
        with torch.inference_mode():
            assert replay.recordable(x)
        with torch.enable_grad():
            assert not replay.recordable(x)
        with economy("keys"):
            assert not replay.recordable(x)
        assert torch.func.vmap(lambda y: y * replay.recordable(y))(x).sum() == 0
        if device == "cuda":
            with torch.autocast("cuda"):
                assert not replay.recordable(x)
        monkeypatch.delenv("FEWSTEP_ECONOMY")
        assert not on("graphs", cuda=True)
    monkeypatch.undo()
    with replay.sampling(), economy("graphs"):
        assert not replay.recordable(torch.ones(2))  # a CPU
