"""CSV files of any length, compressed or not."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from rewards.errors import InputError


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, one at a time, with the wanted columns only and every value stripped.

    Args:
        path: UTF-8; gzip if its name ends in ``.gz``.
        columns: Those that it must have.
        optional: Those that are empty if it lacks them.

    Raises:
        InputError: If it cannot be read, lacks a column, or a line has another number of values than the header.
    """
    try:
        with _open_text(path) as lines:
            rows = csv_rows(lines, path)
            _, header = next(rows, (0, []))
            if missing := [name for name in columns if name not in header]:
                raise InputError(f"{path} lacks the column {', '.join(missing)}", "download it again")
            places = [(name, header.index(name) if name in header else None) for name in (*columns, *optional)]
            for _, values in rows:
                yield {name: "" if place is None else values[place] for name, place in places}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())})", "download it again") from error


def csv_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stripped values, the header first.

    Raises:
        InputError: If a line is not CSV or has another number of values than the header.
    """
    reader = csv.reader(lines, strict=True)
    width = None
    try:
        for values in reader:
            if not values:
                continue
            width = width or len(values)
            if len(values) != width:
                raise InputError(f"{path} line {reader.line_num} has not as many values as the header", "quote commas")
            yield reader.line_num, [value.strip() for value in values]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error})", "mend the line") from error


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")
