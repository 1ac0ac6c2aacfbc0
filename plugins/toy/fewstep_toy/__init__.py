"""2-D distributions whose velocity field is known in closed form: exact ground truth for distillation, on a CPU."""
