"""Quality of generated objects: features of rendered views, voxel overlap, distances of coloured surfaces."""
