"""What families of methods share: the residual of consistency-type objectives and the point where it is evaluated."""
