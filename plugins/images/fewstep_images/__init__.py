"""Small images whose smoothed distribution has a velocity in closed form: exact ground truth on real data."""
