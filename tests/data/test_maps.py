from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcvae_cli.canvas import Canvas
from arcvae_cli.data.files import read_dataset
from arcvae_cli.errors import InputError
from arcvae_cli.settings import DataSettings


def test_a_character_is_a_tile(tmp_path: Path):
    (tmp_path / "caves").mkdir()
    (tmp_path / "caves" / "a.txt").write_bytes("\ufeff#. #\r\n#..#\r\n\r\n\r\n####\r\n#é #\r\n".encode())
    (tmp_path / "b.txt").write_text("....\n  ##\n   #\n\n")  # spaces are tiles, too: as many as dots
    (tmp_path / "read.me").touch()
    read = read_dataset(tmp_path, to=DataSettings(canvas="3x4"))
    assert read.canvas == Canvas(3, 4, 4, arc=False, tiles="# .é"), "by frequency, then by code point"
    assert read.x[0].tolist() == [[2, 2, 2, 2], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert read.x[1:, :2].tolist() == [[[0, 2, 1, 0], [0, 2, 2, 0]], [[0, 0, 0, 0], [0, 3, 1, 0]]]
    assert (read.task.tolist(), read.shape.tolist()) == (["b", "caves/a", "caves/a"], [[3, 4], [2, 4], [2, 4]])


def test_the_value_of_a_picture_is_its_class(tmp_path: Path):
    """In every folder alike: what a folder lacks changes no class."""
    masks = np.random.RandomState(0).randint(0, 2, (3, 5, 9)).astype(np.uint8)
    masks[2] = 0
    for name, image in {"1": masks[0] > 0, "2": masks[1] * 255, "black/3": masks[2] * 255}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    read, two = read_dataset(tmp_path), Canvas(5, 9, 2, arc=False)
    assert (read.x == masks).all() and read.canvas == two
    black = read_dataset(tmp_path / "black", to=two)
    assert not black.x.any() and black.canvas == two
    grey = read_dataset(tmp_path, to=Canvas(5, 9, 256, arc=False))
    assert (grey.x == masks * 255).all(), "a model of all grey values knows 255"
    Image.fromarray(masks[0] + 127).save(tmp_path / "4.png")
    assert read_dataset(tmp_path).x.max() == 255
    with pytest.raises(InputError, match="256 classes do not fit the model"):
        read_dataset(tmp_path, to=two)


def test_pictures_share_a_palette(tmp_path: Path):
    labels = np.array([[0, 7, 25], [20, 7, 0], [1, 1, 1]], np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(bytes(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "a.png")
    assert (read_dataset(tmp_path).x == labels).all()
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: value 0 is another colour than in the files before"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b"#.\n..\n\n#.#\n#.\n"}, r"a\.txt, line 5: 2 characters, the lines before have 3\nmake the lines"),
        ({"a.txt": b"###\n###\n"}, "1 different characters in 1 maps"),
        ({"a.txt": "".join(map(chr, range(0x100, 0x201))).encode()}, "257 different characters"),
        ({"a.txt": b"\xff\xfe#."}, r"a\.txt: damaged or invalid"),
        ({}, "no such file of grids"),
        ({"a.png": b"\x89PNG\r\n\x1a\nnothing"}, r"a\.png: cannot be read"),
        ({"a.png": ("RGB", (4, 4))}, "4x4 pixels of mode RGB"),
        ({"a.png": ("L", (65, 65))}, "65x65 pixels"),
    ],
)
def test_what_is_no_map(tmp_path: Path, content: dict, message: str):
    for name, written in content.items():
        if isinstance(written, bytes):
            (tmp_path / name).write_bytes(written)
        else:
            Image.new(*written).save(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path)
