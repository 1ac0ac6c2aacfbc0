"""The golden-number runner: `python tests/golden/run.py DIR`."""
