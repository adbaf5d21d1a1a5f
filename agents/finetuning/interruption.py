"""Ctrl-C and SIGTERM that wait until a training step is whole."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """As a context manager it turns both signals into `KeyboardInterrupt`, but never inside `held`.

    Half a step would be neither the state before nor the one after: going on from it gives other weights.

    Args:
        always: Hold signals until `held` ends wherever they arrive: of several processes none may leave alone.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always, self._holding = always, False
        self.pending = False

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            self._raise_pending()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing in the block is interrupted; what arrived meanwhile is ``pending``, raised on exit at the latest."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _raise_pending(self) -> None:
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        if not self._holding and not self._always:
            self._raise_pending()
