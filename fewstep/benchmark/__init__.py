"""The benchmark: students by steps and seeds, compared with the teacher and its undistilled network.

Start at ``api.bench``, which ``fewstep.bench`` and the command ``fewstep bench`` call.
"""
