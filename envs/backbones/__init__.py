"""Diffusion models that a selection is made on."""

from __future__ import annotations

import os
from pathlib import Path

# Importing diffusers pulls image processors that warn, at every start, about a torchvision that nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small pretrained pipeline that ships with the package."""
