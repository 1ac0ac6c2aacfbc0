"""``fewstep generate --backbone trellis2``: from a picture to textured meshes."""
