"""Quality of generated objects: features of rendered views, shapes, coloured surfaces."""
