"""The training engine: networks, optimisers, EMAs, phases and checkpoints. It knows nothing of any one method."""
