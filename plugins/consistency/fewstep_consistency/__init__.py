"""Consistency methods with one time input, for distillation or training, on the residual of ``fewstep.methods``."""
