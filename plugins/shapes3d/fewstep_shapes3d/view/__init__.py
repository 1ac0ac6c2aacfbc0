"""``fewstep view``: results in a browser."""
