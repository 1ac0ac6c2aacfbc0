"""From mesh files to a data root in TRELLIS's own layout."""
