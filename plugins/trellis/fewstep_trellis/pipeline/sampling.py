"""Sampling of one stage: from noise along the recipe's grid, given one picture, several, or a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.core.contract import Contract
from fewstep.core.graphs import Graphed, GraphedField
from fewstep.core.guidance import VelocityField
from fewstep.core.layout import Layout
from fewstep.core.objective import Step
from fewstep_trellis.conditioning.several import MODES, several_field
from fewstep_trellis.pipeline.recipe import Recipe
from fewstep_trellis.pipeline.request import Prompt


@torch.no_grad()
def sample(
    flow: Backbone,
    recipe: Recipe,
    noise: Tensor,
    layout: Layout,
    prompt: Prompt,
    seed: int = 42,
    multi_image: str = MODES[0],
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    graphs: Graphed | None = None,
) -> Tensor:
    """Latents of a stage, shaped as ``noise``.

    Args:
        flow: the stage's network, or its student.
        recipe: sampler, steps, guidance, time warp.
        noise: [B, C, r, r, r] or [T, C].
        layout: how the samples lie in it.
        prompt: one row of tokens, repeated for the whole batch; several rows are pictures of the one object.
        seed: of fresh noise, where the sampler draws any (consistency).
        multi_image: "stochastic" or "multidiffusion", the reference's two ways with several pictures.
        on_step: told how many steps are done, of how many.
        graphs: replays the flow's evaluations as CUDA graphs, if the flow stays on its device.

    Raises:
        FewstepError: for another ``multi_image``.
    """
    field = replayed(flow, graphs)
    if len(prompt.tokens) > 1:
        field = several_field(field, cast(Any, multi_image), recipe.grid, recipe.guidance)
    else:
        field = guided(field, recipe)
    cond = prompt.condition(layout.batch_size, noise.device)
    step = Step(index=0, interpolant=flow.interpolant, seed=seed, device=noise.device)
    return draw(field, recipe, noise, cond, layout, step, on_step)


def replayed(field: VelocityField, graphs: Graphed | None) -> VelocityField:
    """The field with its evaluations on dense samples replayed by ``graphs``, or itself where there are none."""
    return field if graphs is None else GraphedField(field, graphs)


def guided(field: VelocityField, recipe: Recipe) -> VelocityField:
    """The field with the recipe's guidance, or itself where there is none."""
    return partial(recipe.guidance.of, field) if recipe.guidance.scale != 1.0 else field


def draw(
    field: VelocityField,
    recipe: Recipe,
    noise: Tensor,
    cond: Condition,
    layout: Layout,
    step: Step,
    on_step: Callable[[int, int], None],
) -> Tensor:
    """Latents, shaped as ``noise``, by the recipe's sampler along its grid; see :func:`sample`."""
    contract = recipe.contract or Contract()
    run = contract.sampled_by(recipe.sampler).load_sampler()

    def report(i: int, x: Tensor, data: Tensor) -> None:
        on_step(i + 1, recipe.steps)

    found: Tensor = run(field, noise, contract.told(cond, noise, layout), layout, recipe.grid, step, report)
    return found
