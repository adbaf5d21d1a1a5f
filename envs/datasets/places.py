"""Where a data set that is a tree of files is looked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def find_tree(names: tuple[str, ...], root: Path | None, holds: Callable[[Path], bool]) -> Path | None:
    """The first of ``root``, ``root/<name>``, ``$MEMCONTROL_DATA/<name>`` and ``$MEMCONTROL_DATA`` that holds the data.

    Args:
        names: Of the folder or file in either place.
        root: ``data.root``, or None.
        holds: Whether a path is what is looked for.
    """
    places = [root, *(root / name for name in names)] if root is not None else []
    if shared := os.environ.get("MEMCONTROL_DATA"):
        places += [*(Path(shared) / name for name in names), Path(shared)]
    return next((place for place in places if place is not None and holds(place)), None)


def tried(root: Path | None) -> str:
    """The places as a message names them."""
    return f"data.root={root} or $MEMCONTROL_DATA={os.environ.get('MEMCONTROL_DATA', '')}"
