"""2-D targets whose velocity is known in closed form: exact ground truth for distillation, on a CPU."""
