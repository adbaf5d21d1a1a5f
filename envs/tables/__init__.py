"""Tables of exhaustively measured masks that ship with the package: ``<env>-<what varies>.parquet``."""

from pathlib import Path

SHIPPED = Path(__file__).parent
"""Their folder. What they hold and how they were made: `envs.evaluators.table` and docs/tables.md."""
