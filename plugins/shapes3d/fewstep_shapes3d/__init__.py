"""What any 3-D backbone shares: meshes, exporters, voxel rendering, prepared object sets, pictures and measures."""
