"""Flow maps: students with two time inputs, which jump from any time t to any time s below it."""
