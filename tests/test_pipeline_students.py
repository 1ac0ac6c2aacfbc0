"""What ``--student`` may name: which stage each is for, how it is sampled, and what is refused."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from fewstep_trellis.backbone import StructureFlow
from fewstep_trellis.checkpoint import save_model
from fewstep_trellis.generate.models import choose, models_of
from fewstep_trellis.normalisation import Normalisation
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.request import Prompt, Request
from fewstep_trellis.pipeline.run import Runner
from fewstep_trellis.pipeline.spec import STAGES
from fewstep_trellis.pipeline.students import Student, find_students
from fewstep_trellis.shipped import NANO
from fewstep_trellis.slat import StructuredLatentFlow
from huggingface_hub import errors
from pipeline_helpers import COND, NORMALISATION, C, network
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.contract import Contract
from fewstep.core.guidance import Guidance
from fewstep.engine.export import StudentInfo, save_student
from fewstep.errors import FewstepError

TOKENS = torch.randn(1, 5, COND, generator=torch.Generator().manual_seed(1))
CONTRACT = Contract(sampler="consistency", steps=(2, 4), rescale_t=1.5, guidance=1.0)
BACKBONES = {"ss": "trellis", "slat": "trellis-slat"}
NAMES = {"ss": "ss_flow", "slat": "slat_flow"}


def backbone(stage: str, seed: int = 9) -> Backbone:
    net = network(NAMES[stage], seed)
    return StructureFlow(net) if stage == "ss" else StructuredLatentFlow(net, Normalisation(**NORMALISATION))


def distilled(folder: Path, stage: str, contract: Contract = CONTRACT, config: Mapping[str, Any] | None = None) -> Path:
    """A folder as ``fewstep distill`` writes it; ``config`` is that of its run."""
    info = StudentInfo(
        contract=contract,
        method="mdt-vd",
        backbone=BACKBONES[stage],
        dataset="sweethome3d",
        plugin="fewstep",
        weights="student",
        step=1,
        seconds=0.0,
        budget={},
        derivatives="none",
        config=dict(config or {}),
        versions={},
    )
    save_student(folder, backbone(stage), info)
    return folder


@pytest.fixture
def pipeline(tiny_pipeline: Path) -> Pipeline:
    return Pipeline.open(tiny_pipeline)


def only(names: list[str | Path], pipeline: Pipeline) -> Student:
    found = find_students(list(map(str, names)), pipeline)
    assert len(found) == 1
    return next(iter(found.values()))


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_a_student_of_another_decoder_gives_a_warning(
    stage: str, pipeline: Pipeline, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    role = {"ss": "sparse_structure_decoder", "slat": "slat_decoder_mesh"}[stage]
    default = NANO / {"ss": "ss_decoder", "slat": "slat_decoder_mesh"}[stage]
    for number, decoder in enumerate((pipeline.stem(role), default, tmp_path / "nowhere", "owner/repository/decoder")):
        only([distilled(tmp_path / str(number), stage, config={"backbone": {"decoder": str(decoder)}})], pipeline)
    assert not [one for one in recwarn if "decoder" in str(one.message)]
    other = pipeline.stem(STAGES[stage])  # a file here
    folder = distilled(tmp_path / "other", stage, config={"backbone": {"decoder": str(other)}})
    with pytest.warns(UserWarning, match=f"distilled for the decoder {other}, but the pipeline decodes with "):
        only([folder], pipeline)


def weights_of(stage: str, seed: int = 9) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in network(NAMES[stage], seed).state_dict().items()}


def assert_is(student: Student, stage: str) -> None:
    assert student.stage == stage
    found = {key.removeprefix("model."): value for key, value in student.load().state_dict().items()}
    for key, value in weights_of(stage).items():
        assert torch.equal(found[key].float(), value.float()), key


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_a_folder_of_distill_and_the_run_around_it(tmp_path: Path, pipeline: Pipeline, stage: str) -> None:
    folder = distilled(tmp_path / "run" / "student", stage)
    for path in (folder, tmp_path / "run", folder / "model.safetensors"):
        student = only([path], pipeline)
        assert_is(student, stage)
        assert student.contract == CONTRACT
        assert student.label == "mdt-vd"


def test_a_pair_is_a_folder_with_both(tmp_path: Path, pipeline: Pipeline) -> None:
    for stage in BACKBONES:
        distilled(tmp_path / "pair" / stage, stage)
    found = find_students([str(tmp_path / "pair")], pipeline)
    assert list(found) == ["ss", "slat"]
    for stage, student in found.items():
        assert_is(student, stage)


def test_a_pair_with_a_student_in_the_wrong_place_is_refused(tmp_path: Path, pipeline: Pipeline) -> None:
    distilled(tmp_path / "pair" / "ss", "slat")
    with pytest.raises(FewstepError, match="holds slat; accepted: one student of stage 'ss'"):
        find_students([str(tmp_path / "pair")], pipeline)


@pytest.mark.parametrize("stage", ["ss", "slat"])
def test_a_checkpoint_pair_by_stem_or_by_either_file(tmp_path: Path, pipeline: Pipeline, stage: str) -> None:
    save_model(network(NAMES[stage], 9), tmp_path / "step.100")
    for name in ("step.100", "step.100.safetensors", "step.100.json"):
        student = only([tmp_path / name], pipeline)
        assert_is(student, stage)
        assert student.contract is None


def put(folder: Path, name: str, state: dict[str, Tensor]) -> Path:
    path = folder / name
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


@pytest.mark.parametrize("stage", ["ss", "slat"])
@pytest.mark.parametrize("name", ["denoiser_ema0.9999_step0006000.pt", "student.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "ema.", "module.ema_model."])
def test_weights_alone_find_their_stage_and_say_what_prefix_went(
    tmp_path: Path, pipeline: Pipeline, stage: str, name: str, prefix: str
) -> None:
    path = put(tmp_path, name, {prefix + key: value for key, value in weights_of(stage).items()})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        student = only([path], pipeline)
        assert said == []
        assert_is(student, stage)
    assert student.contract is None
    texts = [str(one.message) for one in said]
    assert texts == (
        [f"{path}: removed the prefix {prefix!r} from all {len(weights_of(stage))} keys"] if prefix else []
    )


def test_a_folder_of_weights_holds_both_stages(tmp_path: Path, pipeline: Pipeline) -> None:
    for stage in BACKBONES:
        put(tmp_path, f"{stage}_released.safetensors", weights_of(stage))
    assert set(find_students([str(tmp_path)], pipeline)) == {"ss", "slat"}


def test_weights_of_neither_flow_are_one_error_with_every_kind_of_misfit(tmp_path: Path, pipeline: Pipeline) -> None:
    state = weights_of("ss")
    state["brand.new"] = state.pop("out_layer.bias")
    state["input_layer.weight"] = state["input_layer.weight"][:, :1].contiguous()
    path = put(tmp_path, "broken.safetensors", state)
    with pytest.raises(FewstepError) as error:
        find_students([str(path)], pipeline)
    message = str(error.value)
    assert "1 missing: out_layer.bias; 1 unknown: brand.new; 1 wrong shape: input_layer.weight [32, 1]" in message
    assert "does not fit SparseStructureFlowModel" in message
    assert "does not fit SLatFlowModel" in message


def change(**changes: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from fewstep_trellis.checkpoint import build_model
        from pipeline_helpers import MODELS

        name, args = MODELS["ss_flow"]
        save_model(build_model(name, {**args, **changes}), path)

    return write


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (change(cond_channels=16), "cond_channels 16 instead of 32"),
        (change(resolution=8), "resolution 8 instead of 4"),
        (lambda path: save_model(network("ss_dec"), path), "holds a SparseStructureDecoder; accepted: a SparseStruc"),
        (lambda path: path.mkdir(), "a folder without weights"),
        (
            lambda path: path.with_suffix(".pt").write_bytes(b"no tensors"),
            "a complete safetensors file, or a torch",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, pipeline: Pipeline, write: Callable[[Path], None], text: str
) -> None:
    write(tmp_path / "other")
    with pytest.raises(FewstepError) as error:
        find_students([str(tmp_path / "other")], pipeline)
    assert text in str(error.value)


def test_a_stage_cannot_have_two_students_and_a_pipeline_is_none(tmp_path: Path, pipeline: Pipeline) -> None:
    first, second = distilled(tmp_path / "a", "ss"), distilled(tmp_path / "b", "ss")
    with pytest.raises(FewstepError, match=r"stage 'ss' has .*a' already"):
        find_students([str(first), str(second)], pipeline)
    with pytest.raises(FewstepError, match="accepted as: --teacher"):
        find_students([pipeline.name], pipeline)
    with pytest.raises(FewstepError, match="accepted: a folder of fewstep distill"):
        find_students([str(tmp_path / "nothing")], pipeline)


def test_a_file_on_the_hub(tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "slat.safetensors", weights_of("slat"))

    def download(repository: str, file: str) -> str:
        assert repository == "someone/students"
        if not (tmp_path / file).is_file():
            raise errors.EntryNotFoundError(file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_is(only(["someone/students/slat.safetensors"], pipeline), "slat")
    with pytest.raises(FewstepError, match=r"someone/students holds no file 'ss.safetensors'"):
        find_students(["someone/students/ss.safetensors"], pipeline)


def recipe(student: Student, pipeline: Pipeline, **asked: Any) -> tuple[Recipe, list[str]]:
    return recipe_of(pipeline.spec.sampler(student.stage), student, Asked(**asked))


def test_the_contract_is_obeyed(tmp_path: Path, pipeline: Pipeline) -> None:
    student = only([distilled(tmp_path / "s", "slat")], pipeline)
    assert recipe(student, pipeline) == (Recipe("consistency", 2, Guidance(1.0), 1.5), [])
    assert recipe(student, pipeline, steps=4)[1] == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"steps": 3}, "made for 2, 4 steps, got 3"),
        ({"guidance": 2.5}, "made for guidance 1, got 2.5"),
        ({"sampler": "euler"}, "made for sampler 'consistency', got 'euler'"),
    ],
)
def test_what_departs_from_the_contract_is_done_and_told(
    tmp_path: Path, pipeline: Pipeline, asked: dict[str, Any], text: str
) -> None:
    found, said = recipe(only([distilled(tmp_path / "s", "ss")], pipeline), pipeline, **asked)
    assert len(said) == 1
    assert text in said[0]
    values = {"steps": found.steps, "guidance": found.guidance.scale, "sampler": found.sampler}
    assert asked.items() <= values.items()


def test_without_a_contract_the_pipelines_sampler_takes_one_step_and_says_so(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    student = only([put(tmp_path, "s.safetensors", weights_of("ss"))], pipeline)
    found, said = recipe(student, pipeline)
    assert found == Recipe("euler", 1, Guidance(2.5, (0.5, 0.95)), 2.0)
    assert len(said) == 1
    assert "carries no sampling contract" in said[0]
    assert "MDT-dist" in said[0]
    assert recipe(student, pipeline, steps=2)[0].steps == 2
    assert "made for 1 or 2" in recipe(student, pipeline, steps=5)[1][1]


def test_a_student_takes_the_place_of_the_flow(tmp_path: Path, pipeline: Pipeline) -> None:
    folders = [str(distilled(tmp_path / stage, stage)) for stage in BACKBONES]
    students = find_students(folders, pipeline)
    recipes = {stage: recipe(student, pipeline, sampler="euler", steps=1)[0] for stage, student in students.items()}
    found = Runner(pipeline, recipes, students)(Request(Prompt(TOKENS), seed=11), [])

    torch.manual_seed(11)
    ss, slat = backbone("ss"), backbone("slat")
    decoder: Any = pipeline.model("sparse_structure_decoder")
    for net in (ss.model, slat.model, decoder):
        net.convert_to_fp32()
    with torch.no_grad():
        noise, now = torch.randn(1, C, 4, 4, 4), torch.full((1,), 1000.0)
        occupied = torch.argwhere(decoder(noise - ss.model(noise, now, TOKENS))[0, 0] > 0)
        assert torch.equal(found.layout.coords.long(), occupied)
        fresh = torch.randn(len(occupied), C)
        x = fresh - slat.model(fresh, now, TOKENS, found.layout)
    mean, std = (torch.tensor(NORMALISATION[key]) for key in ("mean", "std"))
    assert torch.allclose(found.latents, x * std + mean, atol=1e-5)


def test_a_student_brings_its_own_normalisation(tmp_path: Path, tiny_pipeline: Path) -> None:
    from pipeline_helpers import describe

    shutil.copytree(tiny_pipeline, tmp_path / "p")
    folder = distilled(tmp_path / "slat", "slat", Contract(steps=(1,)))
    latents = []
    for changes in ({}, {"slat_normalization": {"mean": [9.0] * C, "std": [1.0] * C}}):
        pipeline = Pipeline.open(describe(tmp_path / "p", **changes))
        students = find_students([str(folder)], pipeline)
        recipes = {stage: recipe_of(pipeline.spec.sampler(stage), students.get(stage))[0] for stage in ("ss", "slat")}
        latents.append(Runner(pipeline, recipes, students)(Request(Prompt(TOKENS)), []).latents)
    assert torch.equal(*latents)


def test_a_student_of_something_else_is_refused(tmp_path: Path, pipeline: Pipeline) -> None:
    folder = distilled(tmp_path / "s", "ss")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"backbone": "trellis"', '"backbone": "toy"'))
    with pytest.raises(FewstepError, match="a student of 'toy'; accepted: of a TRELLIS flow"):
        find_students([str(folder)], pipeline)


def test_shipped_students_by_every_name_that_is_shown() -> None:
    nano = Pipeline.open(NANO)
    stages = {
        "mdt-vd": ["slat", "ss"],
        "slat-mdt-vd": ["slat"],
        "trellis/mdt-vd": ["ss"],
        "trellis-slat/mdt-vd": ["slat"],
    }
    for name, expected in stages.items():
        found = find_students([name], nano)
        assert sorted(found) == expected
        for student in found.values():
            assert find_students([student.path.name], nano).keys() >= {student.stage}


def test_a_shipped_student_stands_beside_one_of_the_users() -> None:
    """A stage without a student would be sampled from the undistilled teacher in one step."""
    chosen = choose(models_of(student="pcm", steps=1))
    assert [chosen.students[stage].path.name for stage in ("ss", "slat")] == ["pcm", "slat-mdt-vd"]
    assert ["made for 4 steps, got 1" in warning for warning in chosen.warnings] == [True]
    assert choose(models_of(student="pcm")).students.keys() == {"ss"}
    assert not choose(models_of(student="none", steps=1)).students
    said = choose(models_of(student="pcm", steps=(1, 3))).warnings[-1]
    assert "latents: no student for this stage; the pipeline's own flow, made for 25 steps, is sampled in 3" in said
    (structure, latents) = choose(models_of(teacher=NANO, steps=1)).warnings
    assert "structure: no student" in structure
    assert "latents: no student" in latents
