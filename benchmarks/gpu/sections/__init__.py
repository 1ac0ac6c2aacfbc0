"""The sections of the benchmark, one module each; ``benchmarks.gpu.plan`` has their order and time limits."""
