"""Flow matching: trains a teacher from data, on any backbone."""
