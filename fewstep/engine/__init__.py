"""The training engine: networks, optimisers, EMAs, phases and checkpoints, and nothing of any one method."""
