"""Compile one specimen for one architecture, and inspect the result with the tools that come with Triton."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep_kernels.aot.specimen import Specimen

CAPS = {80: 166_912, 90: 232_448, 120: 101_376}  # largest shared memory per block, in bytes
MATRIX = {80: "HMMA", 90: "HGMMA", 120: "HMMA"}


@dataclass(frozen=True)
class Measured:
    """What a specimen compiles to.

    Spills are instructions on local memory (LDL, STL), ``matrix`` tensor-core instructions, ``copies`` asynchronous
    copies (LDGSTS); ``shared`` is in bytes.
    """

    name: str
    arch: int
    registers: int
    spills: int
    shared: int
    matrix: int
    copies: int
    warps: int
    stages: int
    triton: str

    def row(self) -> dict[str, Any]:
        """The fields as a row of the table."""
        return asdict(self)


def measure(specimen: Specimen, arch: int) -> Measured:
    """Compile and inspect.

    Raises:
        Exception: whatever Triton raises for a specimen that it cannot compile for this architecture.
    """
    import triton

    compiled = _compile(specimen, arch)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    usage, code = _read(compiled.asm["cubin"], tools)
    return Measured(
        name=specimen.name,
        arch=arch,
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=int(compiled.metadata.shared),
        matrix=len(re.findall(rf"\b{MATRIX[arch]}\b", code)),
        copies=len(re.findall(r"\bLDGSTS\b", code)),
        warps=specimen.tile.warps,
        stages=specimen.tile.stages,
        triton=triton.__version__,
    )


def _compile(specimen: Specimen, arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, constants = specimen.kernel.arg_names, {**specimen.constants, **specimen.tile.sizes}
    signature = {name: "constexpr" if name in constants else specimen.signature[name] for name in names}
    source = ASTSource(
        specimen.kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in specimen.aligned},
    )
    options = {"num_warps": specimen.tile.warps, "num_stages": specimen.tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _read(cubin: bytes, tools: Path) -> tuple[str, str]:
    """Resource usage and disassembly."""
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        commands = ([str(tools / "cuobjdump"), "--dump-resource-usage", path], [str(tools / "nvdisasm"), "-c", path])
        usage, code = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
    finally:
        os.unlink(path)
    return usage, code


def faults(found: Measured, specimen: Specimen) -> list[str]:
    """What is wrong with a shipped tile, whatever the table says."""
    wrong = []
    # Tiles are tuned for sm_90 and keep their promises there; elsewhere they must compile and fit.
    if found.arch == 90 and "matrix" in specimen.needs and not found.matrix:
        wrong.append(f"no {MATRIX[found.arch]} instruction")
    if found.arch == 90 and "no-spill" in specimen.needs and found.spills:
        wrong.append(f"{found.spills} instructions on local memory")
    if found.shared > CAPS[found.arch]:
        wrong.append(f"{found.shared} bytes of shared memory, over {CAPS[found.arch]}")
    return wrong
