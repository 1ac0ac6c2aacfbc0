"""The model card of a student on the Hugging Face hub: ``README.md`` with its YAML header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fewstep.console import command, number_of
from fewstep.core.contract import Contract
from fewstep.engine.export import StudentInfo
from fewstep.plugins.registry import registry
from fewstep.plugins.shared import implementations


def card(
    repository: str,
    students: Mapping[str, StudentInfo],
    teacher: str | None = None,
    license: str | None = None,
    table: str | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The text of ``README.md``.

    Args:
        repository: owner/name.
        students: the recorded facts of the student of each stage; of a single student under the name "".
        teacher: repository of the model that was distilled.
        license: licence identifier of the hub, such as "mit".
        table: text of a bench's ``table.md``.
        pictures: files beside the card, shown below the table.
    """
    methods = list(dict.fromkeys(info.method for info in students.values()))
    backbones = list(dict.fromkeys(info.backbone for info in students.values()))
    header = ["library_name: fewstep"]
    header += [f"license: {license}"] if license else []
    header += [f"base_model: {teacher}"] if teacher else []
    header += ["tags:", *(f"- {tag}" for tag in ("fewstep", "distillation", *methods, *backbones))]
    blocks = [
        "\n".join(["---", *header, "---"]),
        f"# {repository.partition('/')[2]}",
        f"Few-step student of {' and '.join(backbones)}, distilled by {' and '.join(methods)} with fewstep.",
        "## Sample",
        "```bash\n" + "\n".join(_commands(repository, students, teacher)) + "\n```",
        "```python\n" + "\n".join(_python(repository, students)) + "\n```",
    ]
    for stage, info in students.items():
        of = f": stage {stage}" if stage else ""
        blocks += [f"## Contract{of}", _bullets(contract_in_words(info.contract))]
        blocks += [f"## How it was made{of}", _bullets(_making(info))]
    if table:
        blocks += ["## Measured", "\n".join("##" * line.startswith("#") + line for line in table.splitlines())]
        blocks += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(blocks) + "\n"


def contract_in_words(contract: Contract) -> list[str]:
    """How a student is to be sampled, in sentences."""
    summary = registry().get("sampler", contract.sampler).summary
    lines = [f"Made for {contract.made_for} of the sampler `{contract.sampling}`: {summary}."]
    if contract.times:
        times = ", ".join(f"{t:g}" for t in contract.times)
        lines.append(f"Trained at the times {times} (1 is noise, 0 is data). Fewer steps use an even choice of them.")
    elif contract.rescale_t != 1:
        lines.append(f"Equal steps of time, warped by r t / (1 + (r - 1) t) with r = {contract.rescale_t:g}.")
    else:
        lines.append("Equal steps of time, from 1 (noise) to 0 (data).")
    if contract.strength is not None:
        between = "" if contract.strengths is None else "; trained from {:g} to {:g}".format(*contract.strengths)
        lines.append(
            f"The guidance strength w of (1 + w) c - w u is an input: by default {contract.strength:g}{between}."
        )
    elif contract.guidance == 1:
        lines.append("No guidance when sampling: it is part of what the student learned.")
    else:
        lines.append(f"Guidance u + g (c - u) with g = {contract.guidance:g}, which doubles the evaluations.")
    if contract.two_time:
        lines.append("The network is told where a step ends, and predicts its average velocity.")
    return lines


def _commands(repository: str, students: Mapping[str, StudentInfo], teacher: str | None) -> list[str]:
    lines = []
    first = next(iter(students.values()))
    stages = registry().get("backbone", first.backbone).load().stages.values()
    served = [entry.name for entry in implementations("generate") if entry.name in {first.backbone, *stages}]
    for name in served:
        words = ["generate", "--backbone", name, "picture.png", "-o", "results/", "--student", repository]
        words += ["--teacher", teacher] if teacher else []
        lines.append(command("fewstep", *words, "--steps", first.contract.steps[0]))
    for stage, info in students.items():
        lines.append(command("fewstep", "sample", _name(repository, stage), "--steps", info.contract.steps[0]))
    return lines


def _python(repository: str, students: Mapping[str, StudentInfo]) -> list[str]:
    stage, info = next(iter(students.items()))
    return [
        "import fewstep\n",
        f'student = fewstep.load("{_name(repository, stage)}")',
        "prompts = student.prompts(8)",
        f"latents = student.sample(prompts, steps={info.contract.steps[0]}, seed=0)",
        'student.save(latents, prompts, "samples")',
    ]


def _making(info: StudentInfo) -> list[str]:
    summaries = {entry.name: f": {entry.summary}" for entry in registry().entries("objective") if entry.summary}
    train = info.config.get("train", {})
    batch = train.get("batch_size", 1) * train.get("accumulate", 1)
    weights = "the trained weights" if info.weights == "student" else f"their moving average of rate {info.weights}"
    budget = [
        f"{network} {', '.join(f'{count:,} {kind}' for kind, count in counts.items() if count)}"
        for network, counts in info.budget.items()
        if any(counts.values())
    ]
    return [
        f"Method `{info.method}`{summaries.get(info.method, '')}.",
        f"Data set `{info.dataset}`.",
        f"{number_of(info.step, 'iteration')} of {number_of(batch, 'sample')} in {info.seconds:,.0f} s, {weights}.",
        f"Network evaluations, a sample each: {'; '.join(budget)}.",
        f"{', '.join(f'{name} {version}' for name, version in info.versions.items())}. `config.json` has every key.",
    ]


def _name(repository: str, stage: str) -> str:
    return f"{repository}/{stage}" if stage else repository


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)
