"""The training engine: networks, optimisers, averages, phases and checkpoints, and nothing of any one method.

``config``, ``needs`` and ``presets`` import no torch, so that the command line can resolve and print a run cheaply.
"""
