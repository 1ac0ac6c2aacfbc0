"""Backbones predict velocity; a teacher is a frozen backbone with guidance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.config.base import Strict, validate
from fewstep.core.batch import Batch, Condition
from fewstep.core.guidance import UNGUIDED, Guidance
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Layout
from fewstep.core.strength import StrengthEmbedder
from fewstep.errors import FewstepError
from fewstep.files import write_json
from fewstep.texts import read_json

if TYPE_CHECKING:
    from fewstep.core.dataset import Dataset
    from fewstep.core.suite import Suite

B = TypeVar("B", bound="Backbone")


class Backbone(nn.Module):
    """A network that predicts velocity and declares what it can do.

    A subclass sets ``Config``, ``provides`` (any of "dense", "packed", "jvp", "two_time", "negative_time", "features",
    "guidance_input", "policy"), ``dataset`` and ``interpolant``, and implements ``forward``. It implements ``teacher``
    if there are pretrained weights, and overrides ``initial``, ``as_teacher``, ``save`` and ``load`` where the defaults
    do not fit. "features" also requires ``taps``; "guidance_input" requires ``strength_channels``, and
    ``strength_of(cond)`` added to the embedding of time.

    A model of several networks run one after another has a backbone for each, with its ``stage``; the one that users
    name lists them all in ``stages``.
    """

    Config: ClassVar[type[Strict]]
    config: Any  # an instance of ``Config``, which ``save`` writes
    made_from: ClassVar[frozenset[str]] = frozenset()  # keys of ``Config`` that a run as ``backbone.teacher`` decides
    begins_with_teacher: ClassVar[bool] = False  # whether ``initial`` reads ``config.teacher``
    provides: ClassVar[frozenset[str]] = frozenset()  # what this network or its ``student`` can do
    dataset: ClassVar[str]  # name of the registered data set that a run uses by default
    interpolant: Interpolant = Interpolant()
    strength_channels: int  # width of the embedding that the guidance strength is added to
    adapted: ClassVar[tuple[str, ...]] = (".*",)  # linear layers that get LoRA adapters by default: ``lora.targets``
    stage: ClassVar[str] = ""  # this network's own name among the stages of its model
    stages: ClassVar[Mapping[str, str]] = MappingProxyType({})  # stage: registered backbone, in order

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        """Velocity at x [B, ...] or [T, C] and times t_B [B]; for ``s_B`` see ``VelocityField``.

        A backbone that does not provide "two_time" refuses an ``s_B``.
        """
        raise TypeError(f"{type(self).__name__} does not implement forward")

    def take_strength(self) -> None:
        """Grow an input for the guidance strength, ``Condition.strength``, that changes nothing until it is trained."""
        if not hasattr(self, "strength_embedder"):
            weight = next(self.parameters())
            self.strength_embedder = StrengthEmbedder(self.strength_channels).to(weight.device, weight.dtype)

    def strength_of(self, cond: Condition) -> Tensor | None:
        """The embedded strengths [B, C], to be added to the embedding of time; None where there are none."""
        if cond.strength is None or not hasattr(self, "strength_embedder"):
            return None
        return cast(Tensor, self.strength_embedder(cond.strength))

    def taps(self) -> list[tuple[nn.Module, int]]:
        """The inner layers whose outputs ``features`` gives, from first to last, and their channels."""
        raise TypeError(f"{type(self).__name__} does not implement taps")

    def shard_units(self) -> list[nn.Module]:
        """The modules whose weights are gathered one at a time when the network is sharded over processes. Each must be
        called as a module. By default: the members of the outermost ``nn.ModuleList`` containers."""
        return [unit for blocks in _lists(self) for unit in blocks if any(True for _ in unit.parameters())]

    def features(
        self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, taps: Sequence[int] = (-1,)
    ) -> tuple[Tensor, list[Tensor]]:
        """The velocity, and from the same pass the outputs of inner layers: each [B, ..., C], or [T, C].

        For a head on the network, such as a discriminator on a critic.

        Args:
            taps: which layers, as indices into ``taps()``.

        Raises:
            TypeError: for a backbone that does not provide "features".
        """
        layers, outputs = self.taps(), dict[int, Tensor]()

        def keep(tap: int) -> Callable[..., None]:
            return lambda _module, _inputs, output: outputs.update({tap: output})

        hooks = [layers[tap][0].register_forward_hook(keep(tap)) for tap in taps]
        # The features become outputs of the network, so that a backward pass through them alone is counted as well.
        hooks.append(self.register_forward_hook(lambda _module, _inputs, v: (v, *map(outputs.get, taps)), prepend=True))
        try:
            velocity, *features = self(x, t_B, cond, layout)
        finally:
            for hook in hooks:
                hook.remove()
        return velocity, features

    @classmethod
    def teacher(cls, config: Any) -> Teacher:
        """The frozen teacher that ``config`` (an instance of ``Config``) names. A backbone without pretrained weights
        need not implement this: runs of ``fewstep teach`` are loaded by the engine.

        Raises:
            FewstepError: for a backbone without a teacher of its own.
        """
        raise FewstepError(
            f"backbone.teacher: {cls.__name__} has no teacher of its own; accepted: a run of `fewstep teach`"
        )

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Refuse what distillation can refuse before weights are read, such as a checkpoint that is not there. Not
        called where ``config.teacher`` is a run of ``fewstep teach``. Raises FewstepError."""
        del config  # the base class knows none of its keys

    @classmethod
    def initial(cls, config: Any) -> Backbone:
        """The network with random weights that ``fewstep teach`` begins with. The default is for a class that is made
        from its ``Config`` alone."""
        return cls(config)

    @classmethod
    def outline(cls, config: Any) -> Backbone:
        """The teacher's network, or one of the same size, on the meta device, where tensors have no values. ``fewstep
        distill --dry-run --memory`` counts its memory; nothing large is read. The default is for a class that
        ``initial`` makes without reading files."""
        with torch.device("meta"):
            return cls.initial(config)

    def example(self, samples: int) -> Batch | None:
        """``samples`` made-up samples of a typical size, for ``--memory`` without data; None if there are none."""
        return None

    def as_teacher(self, config: Any) -> Teacher:
        """This network frozen, and sampled as ``config`` says. The default uses ``config.guidance`` if that exists."""
        return Teacher(self, Guidance(getattr(config, "guidance", 1.0)))

    def student(self, needs: frozenset[str] = frozenset()) -> Backbone:
        """The network that distillation starts from: a copy of this one, unless the teacher cannot be trained.

        Args:
            needs: of the objective. With "guidance_input" the student grows an input for the guidance strength. A
                network of one time that provides "two_time" overrides this method to add the second time. New inputs
                change nothing until they are trained.
        """
        copied = copy.deepcopy(self)
        if "guidance_input" in needs:
            copied.take_strength()
        return copied

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write the weights as ``model.safetensors`` and ``model.json`` into ``folder``.

        The default is for a class that is made from its ``Config`` alone and keeps it as ``self.config``; a model with
        a format of its own overrides both this and ``load``.

        Args:
            half: store float16 instead of float32.
        """
        dtype = torch.float16 if half else torch.float32
        tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
        facts = {"class": type(self).__name__, "config": self.config.model_dump(mode="json")}
        more = {"guidance_input": True} if hasattr(self, "strength_embedder") else {}
        write_json(folder / "model.json", facts | more)

    @classmethod
    def load(cls: type[B], folder: Path) -> B:
        """The inverse of ``save``.

        Raises:
            FewstepError: when the files are missing or do not fit each other.
        """
        try:
            facts = read_json(folder / "model.json")
            model = cls(validate(cls.Config, facts["config"]))
            if facts.get("guidance_input"):
                model.take_strength()
            model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise FewstepError(f"{folder}: no {cls.__name__} can be read here: {error}") from None
        return model

    @classmethod
    def measures(cls, dataset: type[Dataset]) -> bool:
        """Whether ``suite`` may return one for data sets of this class; if not, a bench is refused before weights
        load."""
        return True

    @classmethod
    def suite(cls, config: Any, dataset: Dataset) -> Suite | None:
        """The held-out evaluation that ``fewstep bench`` runs for this backbone; None if it has none for this data set,
        in which case ``fewstep sample`` writes samples as an array."""
        return None

    @classmethod
    def students(cls) -> dict[str, Path]:
        """Folders of the students that ship with the plugin, by method; ``fewstep bench --methods`` takes them."""
        return {}


def _lists(module: nn.Module) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        return [module]
    return [inner for child in module.children() for inner in _lists(child)]


class Teacher(nn.Module):
    """A frozen backbone with guidance, itself a ``VelocityField``.

    Args:
        backbone: the pretrained network; its parameters are frozen here.
        guidance: used unless a call passes its own.
        rescale_t: warp of the time grid that it is sampled on.

    Attributes:
        trainable: names of the parameters that were not frozen before, which a student trains.
    """

    def __init__(self, backbone: Backbone, guidance: Guidance = UNGUIDED, rescale_t: float = 1.0) -> None:
        super().__init__()
        self.trainable = frozenset(name for name, p in backbone.named_parameters() if p.requires_grad)
        self.backbone = backbone.eval().requires_grad_(False)
        self.guidance, self.rescale_t = guidance, rescale_t

    @property
    def interpolant(self) -> Interpolant:
        return self.backbone.interpolant

    def forward(
        self,
        x: Tensor,
        t_B: Tensor,
        cond: Condition,
        layout: Layout,
        *,
        s_B: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """The guided velocity; samples whose time is outside the guidance interval get the conditional one.

        ``s_B`` [B] is the target time of a two-time backbone, for both passes.
        """
        return (guidance or self.guidance).of(self.backbone, x, t_B, cond, layout, s_B, self.interpolant)
