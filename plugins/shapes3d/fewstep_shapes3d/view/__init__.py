"""``fewstep view``: results to look at in a browser."""
