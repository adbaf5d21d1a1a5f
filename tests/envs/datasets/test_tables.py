from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from envs.datasets.tables import read_table
from rewards.errors import InputError

CONTENT = '\ufeffa,b,c\n1, "x" ,3\n\n4,"y, z",6\n'.replace(', "x" ', ",x ")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_wanted_columns_of_plain_and_compressed_tables(tmp_path: Path, name: str) -> None:
    content = CONTENT.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = list(read_table(tmp_path / name, ("b", "a"), ("d",)))
    assert rows == [{"b": "x", "a": "1", "d": ""}, {"b": "y, z", "a": "4", "d": ""}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"a,b\n1,2\n", "lacks the column c"),
        ("t.csv", b"", "lacks the column a, c"),
        ("t.csv", b"a,c\n1\n", "line 2 has not as many values"),
        ("t.csv", b'a,c\n1,"2\n', "is not CSV"),
        ("t.csv", "a,c\nä,2\n".encode("latin-1"), "cannot be read"),
        ("t.csv.gz", b"a,c\n1,2\n", "cannot be read"),
        ("t.csv.gz", gzip.compress(b"a,c\n1,2\n" * 1000)[:-12], "cannot be read"),
    ],
    ids=["column", "empty", "short", "quote", "encoding", "not gzip", "cut short"],
)
def test_a_malformed_table_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_table(tmp_path / name, ("a", "c")))
    assert "\n" not in str(caught.value)
