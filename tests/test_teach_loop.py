"""The loop of the structured-latent decoders: an interrupted training ends where an unbroken one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fewstep_trellis.teach.loop import Loop, LoopConfig
from torch import Tensor, nn

from fewstep.errors import FewstepError

CONFIG = LoopConfig(steps=24, lr=0.05, seed=3, checkpoint_every=4)
Row = dict[str, float]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    return model


def train(model: nn.Module, state: Path, config: LoopConfig = CONFIG, stop: int | None = None) -> list[Row]:
    rows: list[Row] = []

    def terms(generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(8, 3, generator=generator)
        return {"fit": (model(x)[:, 0] - x.sum(1)).square().mean()}

    def log(row: Row) -> None:
        rows.append({key: value for key, value in row.items() if key != "seconds"})
        if row["step"] == stop:
            raise KeyboardInterrupt

    Loop(config, model, state).run(terms, {"fit": 2.0}, log)
    return rows


def test_a_resumed_training_is_bit_identical_to_an_unbroken_one(tmp_path: Path) -> None:
    whole, part, resumed = network(), network(), network()
    rows = train(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(part, tmp_path / "state", stop=10)
    assert train(resumed, tmp_path / "state") == rows[8:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert not torch.equal(whole.state_dict()["0.weight"], network().state_dict()["0.weight"])


@pytest.mark.parametrize("steps", range(1, 13))
def test_any_number_of_steps_is_trained(steps: int, tmp_path: Path) -> None:
    assert len(train(network(), tmp_path, CONFIG.model_copy(update={"steps": steps}))) == steps


def test_checkpoints_hold_no_pickle_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    train(network(), tmp_path / "state")
    kept = sorted(path.relative_to(tmp_path / "state").as_posix() for path in (tmp_path / "state").rglob("*.*"))
    assert kept == ["step-00000024/state.json", "step-00000024/state.safetensors"]


def test_a_changed_recipe_is_refused(tmp_path: Path) -> None:
    train(network(), tmp_path / "state")
    with pytest.raises(FewstepError, match=r"changed recipe: lr was 0.05, is 0.1; accepted"):
        train(network(), tmp_path / "state", CONFIG.model_copy(update={"lr": 0.1}))
    more_often = CONFIG.model_copy(update={"checkpoint_every": 1})
    assert train(network(), tmp_path / "state", more_often) == [], "it is done"
