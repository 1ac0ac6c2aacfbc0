"""Kernels in Triton for the ops of ``fewstep.ops``: attention, submanifold convolution, norms."""
