"""Methods that follow the teacher's trajectories: stored pairs, reflow, progressive distillation."""
