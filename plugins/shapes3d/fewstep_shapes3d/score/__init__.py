"""Generated meshes and Gaussians of any system scored against true ones: ``fewstep score``.

``from fewstep_shapes3d.score.run import score`` is the same from Python.
"""
