"""The Python API behind ``import fewstep``: distilling, loading and sampling. The command line is built on it."""
