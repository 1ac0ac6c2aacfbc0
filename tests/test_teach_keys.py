"""``fewstep teach``: every key is checked before anything starts, and an interrupted training goes on as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import refusal
from fewstep_mdt.config import VMConfig
from fewstep_mdt.vm import VelocityMatching
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_toy.config import PointsConfig, ToyConfig
from fewstep_toy.dataset import ToyPoints
from fewstep_toy.network import ToyFlow
from fewstep_trellis.teach.config import Job, TeachConfig
from fewstep_trellis.teach.keys import Keys
from fewstep_trellis.teach.loop import recorded
from fewstep_trellis.teach.vae import VaeConfig, train
from rich.console import Console

from fewstep.cli import main
from fewstep.config.resolve import resolve_stages
from fewstep.config.train import TrainConfig
from fewstep.engine.device import emulates_bf16
from fewstep.engine.trainer import Trainer
from fewstep.errors import FewstepError


@pytest.mark.parametrize(
    ("stage", "key", "part"),
    [
        ("vae", "foo=1", "unknown key 'foo'"),
        ("vae", "vea.steps=3", "did you mean 'vae'?"),
        ("vae", "vae.stepz=3", "did you mean 'vae.steps'?"),
        ("vae", "train.stepz=3", "did you mean 'train.steps'?"),
        ("vae", "train.lr=-1", "train.lr: got -1"),
        ("vae", "train.device=abacus", "abacus"),
        ("vae", "train.precision=fp16", "train.precision"),
        ("vae", "data.mirorr=false", "did you mean 'data.mirror'?"),
        ("vae", "vae.channels=[]", "vae.channels: got []"),
        ("vae", "vae.channels=[4, 0]", "vae.channels"),
        ("flow", "flow.heads=3", "a multiple of twice the heads"),
        ("measure", "guidances=[]", "guidances: got []"),
        ("slat-vae", "slat_vae.mesh_width=100", "multiple of 256"),
        ("slat-flow", "slat_flow.width=30", "a multiple of twice the heads"),
        ("slat", "slat_gs.voxel=3", "did you mean 'slat_gs.voxels'?"),
        ("slat", "source=nowhere", "nowhere"),
        ("targets", "workers=1", "source: got nothing"),
        ("flow", "train.steps=1", "--stage flow: there is no "),
        ("slat-measure", "measure_objects=2", "accepted: --stage slat-flow first, which makes it"),
        ("vae", "root=nowhere", "root: got 'nowhere'; accepted: a prepared set"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    stage: str, key: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["teach", "--stage", stage, "--out", str(tmp_path / "out"), "--device", "cpu", key])
    out, err = capsys.readouterr()
    assert part in refusal(code, out, err)
    assert "stage" not in out
    assert not (tmp_path / "out").exists()


def test_a_later_stage_whose_output_is_there_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow").mkdir()
    code = main(["teach", "--out", str(tmp_path), "--device", "cpu"])
    assert "flow' is there already; accepted: another folder, or --resume" in refusal(code, *capsys.readouterr())
    assert [path.name for path in tmp_path.iterdir()] == ["flow"]


def test_dry_run_and_help_start_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("teach", "--out", str(tmp_path / "out"), "--device", "cpu")
    assert main([*words, "--dry-run", "vae.steps=7", "train.steps=9"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("vae.steps", "command line", "flow (nothing was started)", "train.steps", "preset ss"):
        assert part in out
    assert main([*words, "--dry-run", "root=nowhere"]) == 2
    assert "root: got 'nowhere'; accepted: a prepared set" in capsys.readouterr().err
    assert main([*words, "--help-config", "--stage", "slat"]) == 0
    out = capsys.readouterr().out
    assert "slat_gs.gaussians" in out
    assert "train.lr_schedule" in out
    assert not (tmp_path / "out").exists()


def test_resume_goes_on_with_the_keys_of_the_start(tmp_path: Path) -> None:
    Keys.read(True, ["vae.steps=7", "train.steps=9", "guidances=[1.0]"], tmp_path, False).record(tmp_path)
    Keys.read(False, ["slat_vae.steps=3"], tmp_path, False).record(tmp_path)
    again = Keys.read(True, ["train.lr=1e-5"], tmp_path, True)
    assert again.config == TeachConfig(vae=VaeConfig(steps=7), guidances=(1.0,))
    assert again.engine == {"train": {"steps": 9, "lr": 1e-5}}
    assert Keys.read(True, [], tmp_path, False).config == TeachConfig(), "without --resume nothing is taken over"
    (tmp_path / "teach.json").write_text("{")
    with pytest.raises(FewstepError, match=r"teach\.json: truncated or not JSON"):
        Keys.read(True, [], tmp_path, True)


def test_an_interrupted_structure_vae_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    data, cpu, console = PreparedSet.load(), torch.device("cpu"), Console(quiet=True)
    config = VaeConfig(channels=(4, 8), steps=5, batch_size=1, checkpoint_every=2)

    def run(name: str, stop: int | None = None) -> dict[str, torch.Tensor]:
        with recorded(tmp_path / f"{name}.jsonl", config.steps, console) as record:

            def log(row: dict[str, float]) -> None:
                record(row)
                if row["step"] == stop:
                    raise KeyboardInterrupt

            encoder, _ = train(config, data, cpu, tmp_path / name, log)
        return encoder.state_dict()

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("part", stop=3)
    for name, tensor in run("part").items():
        assert torch.equal(tensor, whole[name]), name
    rows = [json.loads(line)["step"] for line in (tmp_path / "part.jsonl").read_text().splitlines()]
    assert rows == [0]


def test_a_stage_that_is_done_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(TeachConfig(), tmp_path, {}, torch.device("cpu"), True, Console())
    assert not job.finished("vae")
    (tmp_path / "ss_vae_decoder.safetensors").touch()
    assert job.finished("vae")
    assert "vae: done before" in capsys.readouterr().out


def test_the_recipe_of_the_nano_teachers_is_of_their_stages_alone() -> None:
    found = {name: resolve_stages("flow-matching", name) for name in ("trellis", "trellis-slat", "toy")}
    ((ss, slat), (toy,)) = [*found["trellis"].values(), *found["trellis-slat"].values()], found["toy"].values()
    assert (ss.config.train.steps, slat.config.train.steps) == (5000, 3200)
    assert toy.config.train.precision == "fp32"
    assert not any("fewstep_trellis" in source for _, _, source in toy.rows())


@pytest.mark.parametrize(("flags", "slow"), [("fpu avx2 avx512f", True), ("avx512_bf16 amx_bf16", False)])
def test_bf16_gives_way_where_a_cpu_emulates_it(
    flags: str, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **k: flags if str(self) == "/proc/cpuinfo" else real(self, **k))
    cpu = torch.device("cpu")
    assert emulates_bf16(cpu) == slow
    assert not emulates_bf16(torch.device("meta"))
    keys = Keys.read(True, [], tmp_path, False)
    assert keys.flow(tmp_path, cpu).config.train.precision == ("fp32" if slow else "bf16")
    keys = Keys.read(True, ["train.precision=bf16"], tmp_path, False)
    assert keys.flow(tmp_path, cpu).config.train.precision == "bf16"
    lines: list[str] = []
    config = TrainConfig(steps=1, batch_size=2, precision="bf16")
    toy = ToyFlow.teacher(ToyConfig(pretrain=1, width=8))
    Trainer(VelocityMatching(VMConfig()), toy, ToyPoints(PointsConfig(), toy.backbone), config, say=lines.append)
    assert any("emulated by this CPU" in line for line in lines) == slow
