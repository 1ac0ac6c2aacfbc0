"""Training of the autoencoders and flow teachers of both stages, by default at a size for a CPU."""
