"""All stages of TRELLIS.2 together, from a picture to textured meshes."""
