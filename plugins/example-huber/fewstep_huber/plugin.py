"""What the plugin registers. Imports no torch."""

from fewstep import hookimpl


@hookimpl
def register_objectives(register):
    register("huber", target="fewstep_huber.objective:Huber", summary="velocity matching, pseudo-Huber loss")
