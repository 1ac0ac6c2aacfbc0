"""fewstep: few-step distillation of flow and diffusion models, as plugins around a small core."""

from fewstep.plugins.hookspecs import hookimpl

__version__ = "0.1.0"

__all__ = ["__version__", "hookimpl"]
