"""``fewstep sample``: draw from an exported student as its contract says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.text import Text
from typer import Argument, Option

from fewstep.config import validate
from fewstep.errors import FewstepError, invalid
from fewstep.registry import Entry, registry

if TYPE_CHECKING:
    from fewstep.batch import Batch
    from fewstep.contract import Contract
    from fewstep.suite import Suite


def sample(
    path: Annotated[Path, Argument(help="Folder of a student, or of the run that made it.")],
    steps: Annotated[
        int | None, Option(min=1, max=1000, help="Sampling steps; by default its contract's first.")
    ] = None,
    sampler: Annotated[str | None, Option(help="Sampler; by default its contract's.")] = None,
    count: Annotated[int, Option("--count", "-n", min=1, max=4096, help="How many samples.")] = 8,
    seed: Annotated[int, Option(min=0, max=2**31 - 1, help="Seed of the noise.")] = 0,
    out: Annotated[Path, Option("--out", "-o", help="File or folder to write; must not exist.")] = Path("samples.png"),
    image: Annotated[Path | None, Option(help="Condition on this picture, not on held-out prompts.")] = None,
) -> None:
    """Sample from a student."""
    if out.exists():
        raise FewstepError(f"--out: {str(out)!r} exists; accepted: a path that does not, nothing is overwritten")
    if image is not None and not image.is_file():
        raise invalid("--image", str(image), "a picture file")
    draw = registry().get("sampler", sampler) if sampler is not None else None

    from fewstep.checkpoint import load_student

    student, info = load_student(path)
    contract = info.contract
    draw = draw or registry().get("sampler", contract.sampler)
    steps = steps or contract.steps[0]
    for line in departures(contract, draw.name, steps):
        print(f"warning: {line}", file=sys.stderr)
    suite = _suite(info, student)
    x, batch = generate(student, contract, draw.load(), prompts(suite, image, count), steps, seed)
    files = suite.write(suite.decode(x, batch.layout), out)
    text = f"{count} samples, {steps} steps, {draw.name}: {', '.join(map(str, files))}"
    Console().print(Text(text), soft_wrap=True)


def departures(contract: Contract, sampler: str, steps: int) -> list[str]:
    """What the user asked for against the student's contract."""
    found = []
    if sampler != contract.sampler:
        found.append(f"the student was made for sampler {contract.sampler!r}, got {sampler!r}")
    if steps not in contract.steps:
        made_for = ", ".join(map(str, contract.steps))
        found.append(f"the student was made for {made_for} steps, got {steps}")
    return found


def prompts(suite: Suite, image: Path | None, count: int) -> Batch:
    """``count`` samples to make: of one picture, or of the held-out prompts in turn."""
    import torch

    batch = suite.prompts(count) if image is None else suite.prompt_from(image)
    return batch.select(torch.arange(count) % batch.layout.batch_size)


def generate(student: Any, contract: Contract, draw: Any, batch: Batch, steps: int, seed: int) -> tuple[Any, Batch]:
    """Samples [like ``batch.x0``] from fresh noise, with the guidance that the contract asks for."""
    from fewstep.backbone import Guidance, Teacher
    from fewstep.objective import Step

    step = Step(index=0, path=student.path, seed=seed)
    field = Teacher(student, Guidance(contract.guidance)) if contract.guidance != 1.0 else student
    noise = step.randn_like(batch.x0, "noise")
    return draw(field, noise, batch.cond, batch.layout, contract.grid(steps), step), batch


def _suite(info: Any, student: Any) -> Suite:
    backbone, data = registry().get("backbone", info.backbone), registry().get("dataset", info.dataset)
    dataset = data.load()(_config(data, info.config.get("data", {})), student)
    suite: Suite = backbone.load().suite(_config(backbone, info.config.get("backbone", {})), dataset)
    return suite


def _config(entry: Entry, values: dict[str, Any]) -> Any:
    """The config that the student was made with. A path of another machine gives way to this one's default."""
    model = entry.load_config()
    gone = {
        name
        for name, value in values.items()
        if isinstance(value, str)
        and getattr(model.model_fields.get(name), "annotation", None) is Path
        and not Path(value).parent.exists()
    }
    for name in sorted(gone):
        print(
            f"warning: {entry.name}.{name} = {values[name]} is not on this machine: its default is used",
            file=sys.stderr,
        )
    return validate(model, {name: value for name, value in values.items() if name not in gone})
