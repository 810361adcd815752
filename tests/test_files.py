from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_dir, is_file, read_limited, size, usable_folder


def test_a_file_takes_anothers_place_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == tmp_path

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_at_once_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as one, atomic_write(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one"  # which ended last


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "0.977 KiB"), (123_456_789, "118 MiB"), (5 * 2**40, "5 TiB")],
)
def test_a_number_of_bytes_is_told_to_three_digits(count: int, text: str) -> None:
    assert size(count) == text


def test_a_folder_is_tried_before_the_work(tmp_path: Path) -> None:
    assert usable_folder(tmp_path / "a" / "b", "--output").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output .*file: cannot be written to"):
        usable_folder(tmp_path / "file", "--output")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "pipe", ""])
def test_no_regular_file(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    assert not is_file(path)
    assert (is_dir(path), exists(path)) == {"pipe": (False, True), "": (True, True)}.get(name, (False, False))
    with pytest.raises(OSError, match=r"\[Errno \d+\] \w+"):
        read_limited(path, 10)


def test_a_file_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_limited(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(OSError, match="larger than"):
        read_limited(tmp_path / "a", 10)
    assert expanded(Path("~nobody-of-this-name/x")) == Path("~nobody-of-this-name/x")
