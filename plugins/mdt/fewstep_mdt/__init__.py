"""MDT-dist: marginal-data transport distillation (arXiv 2509.04406) by velocity matching and distillation."""
