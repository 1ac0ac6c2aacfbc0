"""A sample fewstep plugin: see README.md."""
