"""TRELLIS.2's published model configurations, one JSON file each, for ``fewstep_trellis.configs.official_config``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
