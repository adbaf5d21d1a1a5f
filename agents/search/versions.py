"""Which version of the searchers' code a search was made by: part of the identity of whatever keeps its results."""

from __future__ import annotations

from collections.abc import Mapping

CODE_VERSION = 4
"""Raise it when a change moves what many searchers ask for, so that no search is reused."""

CODE_VERSIONS: Mapping[str, int] = {"dyna_ppo": 5}
"""Of searchers that have changed alone since: theirs instead."""


def version_of(name: str) -> int:
    """Of the searcher of this name."""
    return CODE_VERSIONS.get(name, CODE_VERSION)
