"""``fewstep.generate``, ``fewstep generate`` and ``fewstep export``: from a picture or a text to files."""
