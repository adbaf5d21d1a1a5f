"""``python -m agents.transfers`` (``make transfers``): puts finished transfers on one page, ``docs/transfers.md``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from agents.entry import entry_point
from agents.settings import read_settings
from agents.transferred.document import write_document
from agents.transferred.runs import TransfersSettings, finished_runs


@entry_point("transfers")
def main(config: DictConfig) -> None:
    """Reads the runs' files and writes the page; nothing is measured."""
    settings = read_settings(config, TransfersSettings)
    print(f"wrote {write_document(Path(settings.docs), finished_runs(settings))}")


if __name__ == "__main__":
    main()
