"""Both stages of TRELLIS together: opening a pipeline and its students, and going from a prompt to objects."""

from __future__ import annotations

from fewstep_trellis.pipeline.export import save_pipeline
from fewstep_trellis.pipeline.loading import Pipeline
from fewstep_trellis.pipeline.recipe import Asked, Recipe, recipe_of
from fewstep_trellis.pipeline.request import Objects, Prompt, Request, of_pictures, of_text
from fewstep_trellis.pipeline.run import Runner
from fewstep_trellis.pipeline.students import Student, find_students

__all__ = [
    "Asked",
    "Objects",
    "Pipeline",
    "Prompt",
    "Recipe",
    "Request",
    "Runner",
    "Student",
    "find_students",
    "of_pictures",
    "of_text",
    "recipe_of",
    "save_pipeline",
]
