"""Small images whose smoothed distribution has a closed-form velocity field: exact ground truth on real data."""
