"""What a loader is told in `env.options`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.errors import InputError

LIMIT = 4000
"""Images that a large source gives unless ``limit`` says otherwise."""

_DRAW_SEED = 0


def whole(options: Mapping[str, Any], name: str, default: int, *, least: int | None = None) -> int:
    """A whole number.

    Raises:
        InputError: If it is something else, or below ``least``.
    """
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name}={value!r}", "give a whole number")
    if least is not None and value < least:
        raise InputError(f"{name}={value}", f"give {least} or more")
    return value


def draw_options(options: Mapping[str, Any]) -> tuple[int | None, int]:
    """``limit`` (None for every image there is) and ``seed`` of the draw.

    Raises:
        InputError: If one is no whole number or out of range.
    """
    limit = None if options.get("limit", LIMIT) is None else whole(options, "limit", LIMIT, least=1)
    return limit, whole(options, "seed", _DRAW_SEED, least=0)


def text(options: Mapping[str, Any], name: str, default: str) -> str:
    """A string.

    Raises:
        InputError: If it is something else.
    """
    value = options.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{name}={value!r}", "give text")
    return value


def words(options: Mapping[str, Any], name: str, default: Sequence[str]) -> tuple[str, ...]:
    """One string or a list of them.

    Raises:
        InputError: If it is something else, or empty.
    """
    value = options.get(name, default)
    chosen = (value,) if isinstance(value, str) else value
    if not isinstance(chosen, (list, tuple)) or not chosen or not all(isinstance(word, str) for word in chosen):
        raise InputError(f"{name}={value!r}", "give a list of names")
    return tuple(chosen)
