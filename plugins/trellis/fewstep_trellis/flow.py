"""What the flows of both stages share: TRELLIS's own network behind the core's conventions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fewstep.config.base import Strict
from fewstep.core.backbone import Backbone, Teacher
from fewstep.core.batch import Condition
from fewstep.core.guidance import Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.policy import average
from fewstep.errors import FewstepError
from fewstep_trellis.checkpoint import build_model, load_model, read_config, save_model
from fewstep_trellis.configs import FOLDER, official_config
from fewstep_trellis.models import MODELS, Rebuildable
from fewstep_trellis.shipped import existing, is_here
from fewstep_trellis.weightfiles import check_complete, split_key, stem_of, tensor_file

SIGMA_MIN = 1e-5
F = TypeVar("F", bound="Flow")
M = TypeVar("M", bound=nn.Module)


class FlowConfig(Strict):
    """How a teacher is guided and stepped; each stage's config adds which teacher, and what decodes its latents."""

    guidance: float = Field(3.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none")
    interval: tuple[float, float] = Field((0.0, 1.0), description="times with guidance, both ends included")
    rescale_t: float = Field(1.0, gt=0, description="warp of the teacher's time grid")
    recompute: Literal["none", "selective", "blocks"] = Field(
        "none",
        description="activation checkpointing of trained networks, memory for time: blocks are computed again in the "
        "backward pass; selective: all but torch's fused attention",
    )

    def teacher_guidance(self) -> Guidance:
        """These settings as the core has them."""
        return Guidance(self.guidance, self.interval)


class Flow(Backbone):
    """Velocity of latents given condition tokens [B, L, Cc]. A subclass sets ``name``, ``network`` and ``velocity``.

    Args:
        model: the network with TRELLIS's parameter names; its times run from 0 to 1000.
    """

    name: ClassVar[str]  # as registered
    network: ClassVar[type[nn.Module]]
    models: ClassVar[Mapping[str, type[Rebuildable]]] = MODELS  # by the names in checkpoints
    published: ClassVar[Path] = FOLDER  # json files of the published models
    begins_with_teacher = True
    stored: ClassVar[torch.dtype] = torch.float16  # what ``save`` writes where asked for half precision
    interpolant = Interpolant(SIGMA_MIN)
    adapted = (r"blocks\.\d+\.(self_attn|cross_attn|mlp)\..*",)
    tokens: ClassVar[int] = 1374  # per picture of 518 x 518: 37 x 37 patches, the class token and 4 registers
    stages: ClassVar[Mapping[str, str]] = MappingProxyType({"ss": "trellis", "slat": "trellis-slat"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.recompute = "none"  # of a student, see FlowConfig

    def velocity(self, x: Tensor, t_B: Tensor, s_B: Tensor | None, cond: Condition, layout: Layout) -> Tensor:
        """The network's answer at the scaled times ``t_B`` and ``s_B`` [B], of a policy [N, ...]."""
        raise TypeError(f"{type(self).__name__} does not implement velocity")

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        if cond.tokens is None:
            raise FewstepError(f"backbone {self.name!r} needs condition tokens [B, L, C], got none")
        policy = self.model.points > 1  # asked once, whatever the target times are
        # Scaled in float64, then rounded, as in the reference: rounding first would lose digits of a sampler's times.
        scaled_s = None if s_B is None or policy else (1000 * s_B.double()).to(x.dtype)
        answer = self.velocity(x, (1000 * t_B.double()).to(x.dtype), scaled_s, cond, layout)
        return average(answer, t_B, s_B, layout) if policy else answer

    @classmethod
    def check_config(cls, config: Any) -> None:
        check_checkpoint(cls.network, "backbone.teacher", config.teacher, cls.models)

    @classmethod
    def initial(cls, config: Any) -> Flow:
        """The flow of ``config.teacher``: its size is the checkpoint's, which may hold random weights.

        Raises:
            FewstepError: for a missing or foreign checkpoint.
        """
        return cls.load_file(existing("backbone.teacher", config.teacher))

    @classmethod
    def outline(cls, config: Any) -> Flow:
        """The flow on the meta device, from its json file alone; the json files of published models are shipped."""
        file = config.teacher.with_name(f"{config.teacher.name}.json")
        found = read_config(file) if file.is_file() else official_config(config.teacher.name, cls.published)
        return cls(build_model(*found, "meta", cls.models))

    @classmethod
    def teacher(cls, config: Any) -> Teacher:
        return cls.initial(config).as_teacher(config)

    def as_teacher(self, config: Any) -> Teacher:
        self.recompute = config.recompute
        return Teacher(self, config.teacher_guidance(), config.rescale_t)

    def student(self: F, needs: frozenset[str] = frozenset()) -> F:
        """A copy, with the inputs and outputs that the method needs."""
        copied = copy.deepcopy(self)
        if "policy" in needs:
            if copied.model.points == 1:
                copied.model.become_policy()
        elif "two_time" in needs and copied.model.jump_embedder is None:
            copied.model.take_second_time(copied.model.args["model_channels"])
        if "guidance_input" in needs and copied.model.strength_embedder is None:
            copied.model.take_strength(copied.model.args["model_channels"])
        if self.recompute != "none":
            copied.model.use_checkpoint = self.recompute
        return copied

    def float(self: F) -> F:
        """In float32 throughout: in a half-precision torso, which is for sampling, updates would round to nothing."""
        self.model.half_torso = None
        return super().float()

    @classmethod
    def load_file(cls: type[F], path: Path) -> F:
        """A flow in the official format.

        Raises:
            FewstepError: for a damaged checkpoint, or one of another class.
        """
        return cls(load_as(cls.network, path, cls.models))

    def save(self, folder: Path, *, half: bool = False) -> None:
        save_model(self.model, folder / "model", dtype=self.stored if half else None)

    @classmethod
    def load(cls: type[F], folder: Path) -> F:
        return cls.load_file(folder / "model")


def check_checkpoint(
    wanted: type[nn.Module], key: str, path: Path, models: Mapping[str, type[Rebuildable]] = MODELS
) -> None:
    """Look whether the checkpoint that the config's ``key`` names is there, of this class and whole, without reading
    weights. What may be on the hub is not fetched for it.

    Raises:
        FewstepError: naming the key.
    """
    if not is_here(key, path):
        return
    place, _ = split_key(path)
    try:
        model = build_model(*read_config(Path(f"{stem_of(place)}.json")), "meta", models)
        _check_class(model, wanted, path)
        check_complete(tensor_file(place))
    except FewstepError as error:
        raise FewstepError(f"{key}: {error}") from None


def load_as(wanted: type[M], path: Path, models: Mapping[str, type[Rebuildable]] = MODELS) -> M:
    """The model of a checkpoint, which must be of this class among those of ``models``.

    Raises:
        FewstepError: for a damaged checkpoint, or one of another class.
    """
    return _check_class(load_model(path, models=models), wanted, path)


def _check_class(model: nn.Module, wanted: type[M], path: Path) -> M:
    if not isinstance(model, wanted):
        raise FewstepError(f"{path}: holds a {type(model).__name__}; accepted: a {wanted.__name__}")
    return model


def load_frozen(wanted: type[M], key: str, path: Path, models: Mapping[str, type[Rebuildable]] = MODELS) -> M:
    """The model that the config's ``key`` names, for inference.

    Raises:
        FewstepError: for a missing or damaged checkpoint, or one of another class.
    """
    return load_as(wanted, existing(key, path), models).eval().requires_grad_(False)
