"""All stages of TRELLIS.2 as one, from a picture to textured meshes."""
