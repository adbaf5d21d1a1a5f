"""What every command shares: Hydra, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from unittest import mock

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rewards.errors import InputError

USAGE, NOT_MET, INTERRUPTED = 2, 3, 130


def entry_point(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes a Hydra application of ``task(config)`` with the exit codes of the contract.

    0 done; 2 and one line ``error: <what> — <what to do>`` for `InputError` and for overrides that Hydra refuses; 3 if
    the task exits so because an audit's threshold was not met; 130 after Ctrl-C or SIGTERM. Anything else is a bug and
    keeps its traceback.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def main() -> None:
            raised: list[BaseException] = []

            @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)
            def application(config: DictConfig) -> None:
                # Hydra writes a line of its own about whatever leaves the task, so nothing does.
                try:
                    task(config)
                except (InputError, KeyboardInterrupt) as error:
                    raised.append(error)
                    if isinstance(error, KeyboardInterrupt):
                        raise SystemExit(INTERRUPTED) from None

            # Makes Hydra raise what is wrong with an override instead of printing many lines and exiting with 1.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            _set_up_logging()
            signal.signal(signal.SIGTERM, lambda *_: _interrupt())
            try:
                with _usage_errors_raised():
                    application()
            except InputError as error:
                _fail(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                _fail(f"{_one_line(error)} — see --help and --cfg job for what can be set")
            except SystemExit:
                if not raised:
                    raise
            except KeyboardInterrupt as interrupt:
                raised.append(interrupt)
            if raised and isinstance(raised[-1], KeyboardInterrupt):
                print(f"interrupted: {raised[-1]}".removesuffix(": "), file=sys.stderr)
                sys.exit(INTERRUPTED)
            if raised:
                _fail(str(raised[0]))

        return main

    return decorate


@contextmanager
def interruption_explained(folder: Path) -> Iterator[None]:
    """Says how to go on with a run that is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"every finished evaluation is kept; go on with resume={folder}") from None


@contextmanager
def _usage_errors_raised() -> Iterator[None]:
    """Hydra reads flags with argparse, which answers an unknown one with its whole usage."""

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise InputError(message, "see --help")

    with mock.patch.object(argparse.ArgumentParser, "error", error):
        yield


def _set_up_logging() -> None:
    """Warnings go to stderr; a run folder's log takes what this project's own packages say besides."""
    stderr = logging.StreamHandler()
    stderr.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[stderr])
    for package in ("agents", "envs", "rewards"):
        logging.getLogger(package).setLevel(logging.INFO)


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


def _fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(USAGE)


def _one_line(error: BaseException) -> str:
    """Hydra's message without where it looked."""
    lines = [line.strip() for line in str(error).split("Config search path")[0].splitlines() if line.strip()]
    return " ".join(lines).replace("\t", ", ")[:300] or type(error).__name__
