import numpy as np
import pytest

from arcvae_cli.data.symmetries import CELLS, gather_table, transform, turn


def test_every_move_is_a_permutation_of_the_canvas():
    table = np.sort(gather_table().reshape(-1, CELLS), axis=1)
    assert table.shape == (16 * 16 * 8, CELLS) and (table == np.arange(CELLS)).all()


@pytest.mark.parametrize(("height", "width"), [(1, 16), (3, 5), (7, 7), (16, 16)])
def test_the_rectangle_is_turned_and_stays_top_left(height: int, width: int):
    stream = np.random.RandomState(height * 17 + width)
    one = stream.randint(0, 10, (height, width)).astype(np.uint8)
    canvas = np.pad(one, ((0, 16 - height), (0, 16 - width)))
    palette = np.concatenate([[0], stream.permutation(9) + 1]).astype(np.uint8)
    # the eight, written out one by one and not by way of `turn`
    turns = [one, one.T[::-1], one[::-1, ::-1], one.T[:, ::-1], one[:, ::-1], one.T[::-1, ::-1], one[::-1], one.T]
    for symmetry, turned in enumerate(turns):
        moved, swapped = transform(canvas[None], np.array([one.shape], np.uint8), np.array([symmetry]), palette[None])
        assert swapped.tolist() == [list(turned.shape)]
        padded = np.pad(palette[turned], ((0, 16 - turned.shape[0]), (0, 16 - turned.shape[1])))
        assert (moved[0] == padded).all(), symmetry
        assert (turn(one, symmetry) == turned).all()
