"""Training of the structure VAE and of the flow teacher at a size for a CPU (or any other)."""
