"""Flow matching: how a teacher is trained from data, on any backbone."""
