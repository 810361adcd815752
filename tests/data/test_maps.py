from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcvae_cli.data.files import read_maps
from arcvae_cli.errors import InputError


def read(folder: Path) -> tuple[list[tuple[str, list]], str]:
    """The maps of a folder with their files, as lists, and the characters of their classes."""
    grids, tiles = read_maps(folder, sorted(path for path in folder.rglob("*") if path.is_file()))
    return [(key, grid.tolist()) for key, grid in grids], tiles


def test_a_character_is_a_tile(tmp_path: Path):
    (tmp_path / "caves").mkdir()
    (tmp_path / "caves" / "a.txt").write_bytes("\ufeff#. #\r\n#..#\r\n\r\n\r\n####\r\n#é #\r\n".encode())
    (tmp_path / "b.txt").write_text("....\n  ##\n   #\n\n")  # spaces are tiles, too: as many as dots
    found, tiles = read(tmp_path)
    assert tiles == "# .é", "by frequency, then by code point"
    assert found[0] == ("b", [[2, 2, 2, 2], [1, 1, 0, 0], [1, 1, 1, 0]])
    assert found[1:] == [("caves/a", [[0, 2, 1, 0], [0, 2, 2, 0]]), ("caves/a", [[0, 0, 0, 0], [0, 3, 1, 0]])]


def test_pictures_of_classes_come_back(tmp_path: Path):
    stream = np.random.RandomState(0)
    a, b = stream.randint(0, 2, (2, 5, 9)).astype(np.uint8)
    (one := tmp_path / "masks").mkdir()
    Image.fromarray(a.astype(bool)).save(one / "a.png")  # 1 bit
    Image.fromarray(b * 255).save(one / "b.png")  # grey
    assert read(one) == ([("a", a.tolist()), ("b", b.tolist())], "")

    (two := tmp_path / "labels").mkdir()
    labels = np.array([[0, 7, 255], [200, 7, 0]], np.uint8)
    palette = np.full((256, 3), 99, np.uint8)
    palette[7] = 1  # the darkest
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    picture.save(two / "a.png")
    assert read(two)[0] == [("a", [[1, 0, 3], [2, 0, 1]])]
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(two / "b.png")
    with pytest.raises(InputError, match=r"b\.png: value 0 is another colour than in the files before"):
        read(two)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b"#.\n..\n\n#.#\n#.\n"}, r"a\.txt, line 5: 2 characters, the lines before have 3\nmake the lines"),
        ({"a.txt": b"###\n###\n"}, "1 different characters in 1 maps"),
        ({"a.txt": "".join(map(chr, range(0x100, 0x201))).encode()}, "257 different characters"),
        ({"a.txt": b"\n\n"}, "0 different characters in 0 maps"),
        ({"a.txt": b"\xff\xfe#."}, r"a\.txt: damaged or invalid"),
        ({"a.txt": b"#.", "b.png": b""}, r"\.png and \.txt\ngive files of one kind"),
        ({}, "no grids"),
        ({"a.png": b"\x89PNG\r\n\x1a\nnothing"}, r"a\.png: cannot be read"),
    ],
)
def test_what_is_no_map(tmp_path: Path, content: dict[str, bytes], message: str):
    for name, written in content.items():
        (tmp_path / name).write_bytes(written)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(("mode", "size", "message"), [("RGB", 4, "4x4 pixels of mode RGB"), ("L", 65, "65x65 pixels")])
def test_pictures_that_are_no_grids(tmp_path: Path, mode: str, size: int, message: str):
    Image.new(mode, (size, size)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=message):
        read(tmp_path)
