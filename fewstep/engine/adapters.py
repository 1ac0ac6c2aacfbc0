"""Low-rank adapters (LoRA, arXiv 2106.09685): shared frozen weights W, and a trained update of low rank.

An adapted linear layer computes W x + b + (alpha / rank) B A x. A [rank, in] is initialised like the weight of a linear
layer, B [out, rank] with 0. The layer keeps its class and its names; the adapter is a module ``lora`` inside it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.config.train import LoRAConfig
from fewstep.core.backbone import Backbone
from fewstep.errors import FewstepError, nearest
from fewstep.files import write_json

M = TypeVar("M", bound=nn.Module)
PEFT = ("adapter_model.safetensors", "adapter_config.json")


class Adapter(nn.Module):
    """x [..., in] to (alpha / rank) B A x [..., out], the update of one linear layer, in the type of x."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        weight = layer.weight
        self.rank, self.alpha = rank, alpha
        self.A = nn.Parameter(torch.empty(rank, layer.in_features, device=weight.device))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.hook = layer.register_forward_hook(_add)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))


def _add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    update: Tensor = cast(Adapter, layer.lora)(inputs[0])
    return output + update.to(output.dtype)


def adapt(network: Backbone, teacher: Backbone, config: LoRAConfig, shared: dict[str, nn.Parameter]) -> None:
    """Freeze a student and give its linear layers adapters. Parameters that its teacher lacks are trained in full.

    Args:
        network: a student of ``teacher``, changed in place. A parameter that equals the one of its name in ``shared``
            is replaced by it.
        shared: frozen parameters by name; those of ``network`` that are missing are added.

    Raises:
        FewstepError: for targets that fit no linear layer.
    """
    own = dict(teacher.named_parameters()) if type(network) is type(teacher) else dict(network.named_parameters())
    base = {key: p for key, p in network.named_parameters() if key in own and own[key].shape == p.shape}
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" in base and layer.weight.requires_grad
    }
    chosen = targeted(layers, config.targets or network.adapted)
    for key, parameter in base.items():
        parameter.requires_grad_(False)
        first = shared.setdefault(key, parameter)
        # Tensors on the meta device have no values to compare: there they are taken to be equal.
        if first.dtype == parameter.dtype and (first.is_meta or torch.equal(first, parameter)):
            put(network, key, first)
    for layer in chosen.values():
        layer.lora = Adapter(layer, config.rank, config.alpha or config.rank)


def targeted(layers: Mapping[str, nn.Linear], targets: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The layers whose name, or the end of it after a dot, matches one of ``targets``, names or regular expressions.

    Raises:
        FewstepError: for a target that fits no layer, or is not a regular expression.
    """
    chosen = set()
    for target in targets:
        try:
            fits = {name for name in layers if re.fullmatch(rf"(.*\.)?({target})", name)}
        except re.error as error:
            raise FewstepError(f"lora.targets: got {target!r}, which is not a regular expression: {error}") from None
        if not fits:
            names = sorted({name.rpartition(".")[2] for name in layers})
            hint = nearest(target, [*names, *layers])
            raise FewstepError(
                f"lora.targets: {target!r} fits no trainable linear layer; accepted: the end of a layer's name, such "
                f"as {', '.join(names[:8]) or 'none (there are no linear layers)'}, or a regular expression"
                + (f"; did you mean {hint!r}?" if hint else "")
            )
        chosen |= fits
    return {name: layer for name, layer in layers.items() if name in chosen}


def put(network: nn.Module, key: str, parameter: nn.Parameter) -> None:
    """Replace the network's parameter of this name."""
    owner, _, name = key.rpartition(".")
    setattr(network.get_submodule(owner), name, parameter)


def is_adapter(key: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora." in key


def adapters_in(network: nn.Module) -> dict[str, Adapter]:
    """The adapters by the names of their layers."""
    modules = network.named_modules()
    return {name[: -len(".lora")]: module for name, module in modules if isinstance(module, Adapter)}


@torch.no_grad()
def merged(network: M) -> M:
    """A float32 copy whose weights are W + (alpha / rank) B A; a network without adapters is returned unchanged."""
    if not adapters_in(network):
        return network
    out = copy.deepcopy(network).float()
    for name, adapter in adapters_in(out).items():
        layer = out.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.weight += adapter.scale * adapter.B @ adapter.A
        adapter.hook.remove()
        del layer.lora
    return out


def save_adapters(folder: Path, network: Backbone, trained: Iterable[str], base: str) -> None:
    """Write the adapters as peft does, for ``PeftModel.from_pretrained(network, folder)``; without any, do nothing.

    Args:
        trained: names of the parameters that were trained. Those outside adapters are written in full.
        base: name of the network that the adapters are for.
    """
    adapters = adapters_in(network)
    if not adapters:
        return
    in_full = [key for key in trained if not is_adapter(key)]
    tensors = {f"{name}.lora_{key}.weight": p for name, a in adapters.items() for key, p in a.named_parameters()}
    tensors |= {key: network.get_parameter(key) for key in in_full}
    save_file(
        {f"base_model.model.{key}": p.detach().to("cpu", torch.float32).contiguous() for key, p in tensors.items()},
        folder / PEFT[0],
        metadata={"format": "pt"},
    )
    first = next(iter(adapters.values()))
    facts = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": sorted(adapters),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in in_full}) or None,
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / PEFT[1], facts)
