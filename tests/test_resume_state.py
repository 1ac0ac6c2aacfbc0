"""Everything that a checkpoint holds beside weights comes back from its file."""

from __future__ import annotations

from pathlib import Path

import torch
from engine_helpers import trainer

from fewstep.engine.resume import Store, restore, scalars_of, tensors_of


def test_every_number_of_a_run_comes_back(tmp_path: Path) -> None:
    keys = {"steps": 3, "ema": (0.5,), "clip": "adaptive", "clip_buffer": 2}
    run, again = (trainer("tiny-transport", "tiny-fused", **keys) for _ in range(2))
    run.train(lambda _: None, lambda: None)
    run.skipped["student"], run.reads_total = 3, True
    store = Store(tmp_path)
    store.save(run.step, tensors_of(run), {}, scalars_of(run))
    found = store.newest()
    assert found is not None
    assert restore(again, found) == []
    assert again.step == 3
    assert again.derivatives.wanted.mode == "finite-difference"  # found out once: the network has no forward mode
    assert again.derivatives.wanted.reason == run.derivatives.wanted.reason
    assert {**scalars_of(again), "derivatives": None} == {**scalars_of(run), "derivatives": None}
    assert again.optimizers["student"].clipper.norms == run.optimizers["student"].clipper.norms
    assert len(again.optimizers["student"].clipper.norms) == 2
    averages = (one.nets.view.ema("student", 0.5).parameters() for one in (run, again))
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
    expected, got = tensors_of(run), tensors_of(again)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
