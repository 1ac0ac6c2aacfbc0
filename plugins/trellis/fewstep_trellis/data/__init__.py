"""Real objects: reading catalogues, voxels, pictures, the split, and the prepared set they become."""
