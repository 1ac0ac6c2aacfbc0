"""The initial weights of the flow models: the scheme of DiT (Peebles and Xie 2023, section 3.2)."""

from __future__ import annotations

from torch import nn

from fewstep_trellis.models.blocks import ModulatedCrossBlock
from fewstep_trellis.models.embeddings import TimestepEmbedder


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def xavier(model: nn.Module) -> None:
    """Xavier's uniform weights and zero biases for all linear layers."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise(model: nn.Module, out_layer: nn.Linear, shared_mod: nn.Sequential | None = None) -> None:
    """Xavier for linear layers, 0.02 for the time embedder, zero for modulation and output.

    With zero gates every block starts as the identity (except for cross attention), and the model predicts zero.
    """
    if out_layer.weight.is_meta:  # built to be filled from a file: normal_ would import torch's compiler, for seconds
        return
    xavier(model)
    for layer in model.modules():
        if isinstance(layer, TimestepEmbedder):
            for weight in (p for p in layer.parameters() if p.ndim == 2):
                nn.init.normal_(weight, std=0.02)
        elif isinstance(layer, ModulatedCrossBlock) and not layer.share_mod:
            zero(layer.adaLN_modulation[1])
    if shared_mod is not None:
        zero(shared_mod[1])
    zero(out_layer)
