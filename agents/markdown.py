"""Pieces of the pages under ``docs/`` that commands write."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agents.parts import Record

_WIDTH = 120


def origin(records: Mapping[Any, Record]) -> str:
    """When, where and by what: parts of one origin are named together."""
    origins: dict[str, list[str]] = {}
    for part, each in records.items():
        origins.setdefault(f"{each['date']}, {made_by(each)}", []).append(f"{part} ({each['seconds']:.0f} s)")
    return (
        prose("; ".join(f"{', '.join(parts)}: {origin}" for origin, parts in origins.items()) + ".") if origins else ""
    )


def made_by(result: Mapping[str, Any]) -> str:
    """The source's commit, the machine and the versions that a result names as ``git``, ``hardware``, ``versions``."""
    commit = (result["git"]["commit"] or "none")[:12] + (" with changes" if result["git"]["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"commit {commit}, {result['hardware']}, {versions}"


def prose(text: str) -> str:
    """A paragraph."""
    return textwrap.fill(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
