"""``fewstep generate`` and ``fewstep export``: the pipeline on the command line."""
