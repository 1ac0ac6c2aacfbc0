"""What any 3-D backbone shares: meshes, exporters, voxel rendering, object data sets, pictures, measures, results."""
