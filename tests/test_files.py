from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcvae_cli.files import atomic_write, read_limited


def test_a_file_takes_anothers_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as one, atomic_write(path) as two:
        one.write_text("one")
        two.write_text("two")
        assert not path.exists() and one != two
    assert path.read_text() == "one"  # which ended last
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        raise KeyError(temporary.write_text("half"))
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "pipe", "", "large"])
def test_only_regular_files_up_to_the_limit_are_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(OSError, match=r"\[Errno \d+\] \w+"):
        read_limited(tmp_path / name, 10)
    assert read_limited(tmp_path / "large", 11) == bytes(11)
