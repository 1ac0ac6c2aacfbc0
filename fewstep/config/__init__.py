"""Configs: the base class, what describes them, presets, and how a run's config is resolved. Imports no torch."""
