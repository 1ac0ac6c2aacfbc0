"""``fewstep sample``: sample an exported student as its contract says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fewstep.cli.options import DEVICE, home, real, whole
from fewstep.config.base import merge, parse_override
from fewstep.console import Console, number_of, say
from fewstep.errors import FewstepError, invalid, unknown
from fewstep.files import check_place, file_suffix

BACKGROUND = ("remove", "keep")


def sample(
    path: Annotated[str, Argument(help="A student's folder, its run's folder, a shipped name or a hub name.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Keys of the prompts' data set, e.g. data.seed=1.")
    ] = None,
    steps: Annotated[int | None, whole("--steps", "Sampling steps; by default its contract's first.", 1, 1000)] = None,
    sampler: Annotated[str | None, Option(help="NAME, or NAME:NOISE with its share of fresh noise.")] = None,
    guidance: Annotated[
        float | None,
        real("--guidance", "Strength w, for a student that takes it as an input; by default its contract's."),
    ] = None,
    count: Annotated[int, whole("--count", "How many samples.", 1, 4096, "-n")] = 8,
    seed: Annotated[int, whole("--seed", "Seed of the noise.", 0, 2**31 - 1)] = 0,
    out: Annotated[
        str | None, Option("--out", "-o", help="File or folder to write; must not exist. By default samples.png.")
    ] = None,
    dataset: Annotated[
        str | None, Option("--dataset", "-d", help="Data set of the prompts; by default the student's own.")
    ] = None,
    image: Annotated[str | None, Option(help="Condition on this picture instead of held-out prompts.")] = None,
    background: Annotated[
        str, Option(help="What to do with the background of an opaque --image: remove (needs rembg) or keep.")
    ] = "remove",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Sample from a student."""
    place, picture = (None if given is None else Path(home(given)) for given in (out, image))
    if place is not None:
        _check_out(place, out)
    _check_image(picture)
    if background not in BACKGROUND:
        raise unknown("--background", background, BACKGROUND)
    if sampler is not None:
        from fewstep.core.contract import parse_sampler

        parse_sampler(sampler)
    keys = merge(*map(parse_override, overrides or []))
    if wrong := [key for key in keys if key != "data" or not isinstance(keys[key], dict)]:
        raise unknown("key", wrong[0], ["data.*"])

    from fewstep.api.loading import load

    student = load(home(path), device=device, dataset=dataset, data=keys.get("data", {}))
    suffixes = student.suite.suffixes
    if place is None:
        place = Path("samples").with_suffix(suffixes[0])
        _check_out(place, str(place))
    if file_suffix(place) not in ("", *suffixes):
        raise invalid("--out", out, f"a folder, or a file ending in {' or '.join(suffixes)}")
    prompts = student.prompts(picture, count, background)
    latents = student.sample(prompts, steps=steps, seed=seed, sampler=sampler, guidance=guidance)
    files = student.save(latents, prompts, place)
    contract = student.contract
    made = number_of(count, "sample"), number_of(steps or contract.steps[0], "step")
    how = ", ".join((*made, sampler or contract.sampling))
    say(Console(), f"{how}: {', '.join(map(str, files))}")


def _check_out(out: Path, given: str | None) -> None:
    """Check, before any work, that nothing would be overwritten and that ``out`` can be written."""
    if not (given or "").strip():
        raise invalid("--out", given, "a file or folder that does not exist")
    check_place("--out", out)
    if os.path.lexists(out):
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a path that does not, nothing is overwritten")


def _check_image(image: Path | None) -> None:
    """Check, before the networks are loaded, that the picture can be fully decoded."""
    if image is None:
        return
    from PIL import Image

    if not os.path.isfile(image):  # unlike Path.is_file, it takes any text
        raise invalid("--image", str(image), "a picture file; there is none of this name")
    try:
        with Image.open(image) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise invalid("--image", str(image), f"a picture (PNG, JPEG, WebP); {error}") from None
