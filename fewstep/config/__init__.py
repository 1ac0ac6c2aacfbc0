"""Configs: the base class, descriptions of keys, presets, and how a run's config is resolved. Imports no torch."""
