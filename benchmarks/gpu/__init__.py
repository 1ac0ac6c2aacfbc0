"""The GPU benchmark: correctness on real hardware, timings against peers, the training step, the whole pipeline."""
