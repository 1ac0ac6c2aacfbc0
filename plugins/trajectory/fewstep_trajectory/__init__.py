"""Methods that follow the teacher's trajectories: KD, reflow, progressive distillation, PeRFlow, pi-Flow."""
