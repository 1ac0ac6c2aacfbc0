"""What the benchmark does, one module a section; ``benchmarks.gpu.plan`` has their order and their time."""
