"""What sharding costs on many GPUs, modelled, not measured: bytes moved per process, time by link, efficiency.

    python -m benchmarks.scale.model                         # the paper's setting: 32 GPUs, TRELLIS's 1.1 B parameters
    python -m benchmarks.scale.model --gpus 8 --mesh 1 8

The model: a network of P parameters in float32 is sharded over S processes, in R replicas. An all-gather moves
4 P (S - 1) / S bytes into each process. A micro-batch gathers the student for each of its forward and backward passes,
and the teacher for each of its evaluations. After each backward pass the gradient is reduce-scattered, and all-reduced
over replicas, which moves 2 (R - 1) / R of a shard. The defaults are the passes of mdt-vd, as counted in metrics.jsonl.
Within a machine traffic goes over NVLink, between machines over one network card per GPU. A forward pass over T tokens
takes 2 P T floating-point operations, a backward pass twice as many, at a share of the GPU's peak; the attention scores
are left out. Efficiency is computing / (computing + moving) without overlap, and computing / max(computing, moving)
with full overlap; a real run lies in between.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Setting:
    """One run. Bandwidths are in GB/s into a GPU, ``peak`` in TFLOP/s."""

    gpus: int = 32
    mesh: tuple[int, int] = (4, 8)
    machine: int = 8
    parameters: float = 1.1e9
    samples: int = 4
    tokens: int = 4096
    forward: int = 5
    backward: int = 2
    teacher: int = 2
    nvlink: float = 450.0
    network: float = 50.0
    peak: float = 989.0
    share: float = 0.35

    def moved(self) -> dict[str, float]:
        """GB into each process per micro-batch, by what is moved."""
        replicas, shards = self.mesh
        one = 4 * self.parameters * (shards - 1) / shards / GB
        return {
            "gather the student": (self.forward + self.backward) * one,
            "gather the teacher": self.teacher * one,
            "scatter the gradient": self.backward * one,
            "sum over replicas": self.backward * 2 * (replicas - 1) / replicas * 4 * self.parameters / shards / GB,
        }

    def link(self, what: str) -> float:
        """GB/s of the slowest link involved."""
        group = self.mesh[1] if what != "sum over replicas" else self.gpus
        return self.nvlink if group <= self.machine else self.network

    def seconds(self) -> tuple[float, float]:
        """Seconds of computing and of moving, per micro-batch."""
        work = 2 * self.parameters * self.tokens * self.samples * (self.forward + self.teacher + 2 * self.backward)
        moving = sum(size / self.link(what) for what, size in self.moved().items())
        return work / (self.share * self.peak * 1e12), moving


def main() -> None:
    defaults = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(defaults).items():
        many = {"nargs": 2} if isinstance(value, tuple) else {}
        kind = type(value[0] if isinstance(value, tuple) else value)
        parser.add_argument(f"--{name}", type=kind, default=value, **many)  # type: ignore[arg-type]
    given = vars(parser.parse_args())
    setting = Setting(**given | {"mesh": tuple(given["mesh"])})
    if setting.mesh[0] * setting.mesh[1] != setting.gpus:
        parser.error(f"--mesh {setting.mesh[0]} {setting.mesh[1]}: accepted are two factors of --gpus {setting.gpus}")
    for what, size in setting.moved().items():
        print(f"{what:22} {size:7.2f} GB  {1e3 * size / setting.link(what):7.1f} ms at {setting.link(what):g} GB/s")
    computing, moving = setting.seconds()
    print(f"computing              {1e3 * computing:18.1f} ms at {setting.share:g} of {setting.peak:g} TFLOP/s")
    print(f"efficiency             {computing / (computing + moving):.2f} without overlap, ", end="")
    print(f"{computing / max(computing, moving):.2f} with full overlap")


if __name__ == "__main__":
    main()
