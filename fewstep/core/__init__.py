"""What an author of an objective, a backbone or a data set implements or reads."""
