"""MDT-dist (marginal-data transport distillation, arXiv 2509.04406): velocity matching and velocity distillation."""
