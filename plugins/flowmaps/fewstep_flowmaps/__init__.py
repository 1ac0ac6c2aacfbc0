"""Flow maps: students of two times, which jump from any time t to any earlier time s."""
