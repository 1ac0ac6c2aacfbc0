"""The network before distillation: fitted to the exact velocity, or to the images by flow matching."""

from __future__ import annotations

import copy
import math
import time
from contextlib import suppress
from functools import lru_cache

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fewstep.console import Console, say
from fewstep.core.batch import Condition
from fewstep.core.layout import Dense
from fewstep.files import Unwritable, cache_folder, digest, write_bytes
from fewstep_images.config import ImagesConfig
from fewstep_images.exact import ExactFlow
from fewstep_images.network import ImageFlow
from fewstep_images.sources import CLASSES

BATCH, LR, UNCONDITIONAL = 256, 2e-3, 0.2
VERSION = 1  # of this file's recipe, part of the cache key
EVERY = 5.0  # seconds between progress lines


def fitted(config: ImagesConfig) -> ImageFlow:
    """A network that already approximates the velocity; fitted once per config, and kept in the cache on disk."""
    keys = {"teacher", *ImageFlow.made_from}
    return copy.deepcopy(_fit(ImagesConfig(**config.model_dump(include=keys))))


@lru_cache(maxsize=8)
def _fit(config: ImagesConfig) -> ImageFlow:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = ImageFlow(config)
    file = cache_folder() / "images" / f"{digest([VERSION, config.model_dump(exclude={'points'})])[:24]}.safetensors"
    try:
        model.load_state_dict(load_file(file))
    except Exception:  # missing or damaged: fitted again
        _train(model, config)
        with suppress(Unwritable):
            write_bytes(file, save(model.state_dict()))
    return model


@torch.enable_grad()
def _train(model: ImageFlow, config: ImagesConfig) -> None:
    """Adam on the squared error to the exact velocity or, for a learned teacher, to each sample's eps - x0."""
    exact, generator = ExactFlow(config), torch.Generator().manual_seed(config.seed)
    adam = torch.optim.Adam(model.parameters(), LR)
    told = time.monotonic()
    for step in range(config.pretrain):
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(Console(stderr=True), f"fitting the network of backbone 'images' {step}/{config.pretrain}")
        adam.param_groups[0]["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / config.pretrain))
        adam.zero_grad()
        _loss(model, exact, generator).backward()
        adam.step()


def _loss(model: ImageFlow, exact: ExactFlow, generator: torch.Generator) -> Tensor:
    mixture, layout, cond = exact.mixture, Dense(BATCH), Condition()
    rows = torch.randint(len(mixture.means), (BATCH,), generator=generator)
    shape = (BATCH, mixture.means.shape[1])
    x0 = mixture.means[rows] + mixture.std * torch.randn(shape, generator=generator)
    t_B, noise = torch.rand(BATCH, generator=generator), torch.randn(shape, generator=generator)
    if exact.config.conditional:
        one_hot = torch.nn.functional.one_hot(mixture.classes[rows], CLASSES).to(x0.dtype)
        cond = Condition(one_hot).dropped(torch.rand(BATCH, generator=generator) < UNCONDITIONAL)
    x_t = exact.interpolant.interpolate(x0, noise, t_B, layout)
    learned = exact.config.teacher == "learned"
    target = exact.interpolant.velocity(x0, noise) if learned else exact(x_t, t_B, cond, layout)
    error: Tensor = model(x_t, t_B, cond, layout) - target
    return error.square().mean()
