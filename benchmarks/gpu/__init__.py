"""The benchmark on a GPU: correctness on real hardware, times against peers, the training step, the whole pipeline."""
