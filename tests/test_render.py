from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from arcvae_cli.errors import ArcvaeError
from arcvae_cli.render import plots
from arcvae_cli.render.terminal import PALETTE


def random_grids(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, (count, height, width), np.uint8)


def pixels(path: Path) -> np.ndarray:
    """RGB of a PNG as (h, w, 3) uint8."""
    return (image.imread(path)[..., :3] * 255).round().astype(np.uint8)


def tiles(path: Path, side: int = 16) -> np.ndarray:
    """Colours at the centres of the cells of each tile, found by its lines: (rows, columns, side, side, 3)."""
    sheet = pixels(path)
    line = (sheet == [0x55, 0x55, 0x55]).all(2)
    tops, lefts = (np.flatnonzero(line.sum(axis) > line.sum(axis).max() / 2) for axis in (1, 0))
    tops, lefts = tops[:: side + 1], lefts[:: side + 1]
    centres = np.arange(side) * 8 + 4
    return np.array([[sheet[top + centres][:, left + centres] for left in lefts] for top in tops])


RGB = np.array([[round(255 * part) for part in to_rgb(colour)] for colour in PALETTE], np.uint8)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are drawn, which are also rendered."""
    figures: list = []

    def keep(figure, path) -> None:
        figure.savefig(io.BytesIO(), format="png")
        figures.append(figure)

    monkeypatch.setattr(plots, "_write", keep)
    return figures


HERE = Path("unused.png")


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


class TestSheets:
    def test_grids_can_be_read_back(self, tmp_path: Path) -> None:
        grids = random_grids(6)
        plots.save_grids(tmp_path / "new" / "grids.png", grids, columns=3, title="six", titles=list("abcdef"))
        read = tiles(tmp_path / "new" / "grids.png")
        np.testing.assert_array_equal(read.reshape(6, 16, 16, 3), RGB[grids])

    def test_reconstructions_stand_under_their_originals_and_errors_below(self, tmp_path: Path) -> None:
        originals = random_grids(20)
        reconstructions = originals.copy()
        reconstructions[:, 3, 5] = (originals[:, 3, 5] + 1) % 10
        plots.save_reconstructions(tmp_path / "r.png", originals, reconstructions)
        read = tiles(tmp_path / "r.png")
        assert read.shape[:2] == (6, 8)  # two bands of three rows, 16 pairs of the 20
        np.testing.assert_array_equal(read[[0, 3]].reshape(16, 16, 16, 3), RGB[originals[:16]])
        np.testing.assert_array_equal(read[[1, 4]].reshape(16, 16, 16, 3), RGB[reconstructions[:16]])
        errors = read[[2, 5]].reshape(16, 16, 16, 3)
        assert (errors[:, 3, 5] == 255).all()
        assert errors.sum() == 16 * 3 * 255  # and black elsewhere

    def test_a_last_row_may_be_short_and_shapes_are_drawn(self, tmp_path: Path) -> None:
        grids = np.zeros((9, 16, 16), np.uint8)
        plots.save_reconstructions(tmp_path / "plain.png", grids, grids)
        plots.save_reconstructions(tmp_path / "shapes.png", grids, grids, np.full((9, 2), [5, 7], np.uint8))
        red = (pixels(tmp_path / "shapes.png") == RGB[2]).all(2).sum()
        assert red == 9 * 2 * (5 * 8 + 7 * 8)  # the edge of each rectangle in the rows of errors
        assert (pixels(tmp_path / "plain.png") == RGB[2]).all(2).sum() == 0

    def test_maps_stand_under_their_originals_in_one_scale(self, tmp_path: Path, drawn: list) -> None:
        grids = random_grids(3)
        maps = np.zeros((3, 8, 8), np.float32)
        maps[0, 1, 2], maps[2, 7, 0] = 2.5, 1.25
        sheets, top = plots.example_sheets(grids, grids, grids, {"local": maps})
        sheet = sheets["kl_maps"]
        assert top == 2.5
        image.imsave(tmp_path / "maps.png", sheet)
        np.testing.assert_array_equal(tiles(tmp_path / "maps.png")[0], RGB[grids])
        side = 129
        squares = sheet[side + 10 :].reshape(side, -1, 3)
        cells = np.array([squares[8::16][:8, start + 8 : start + side : 16] for start in range(0, 3 * 139, 139)])
        colours = colormaps["magma"](maps / 2.5, bytes=True)[..., :3]
        np.testing.assert_array_equal(cells, colours)
        plots.save_kl_maps(HERE, grids, {"local": maps})
        axes, bar = drawn[0].axes
        assert texts(axes) == ["2.5 nats", "0.0 nats", "1.2 nats", "original", "KL of local"]
        assert bar.get_ylabel() == "KL of a cell, nats" and bar.get_ylim() == (0, 2.5)

    def test_the_mean_of_all_maps_comes_first_in_the_same_scale(self, drawn: list) -> None:
        maps, mean = np.full((2, 8, 8), 4.0, np.float32), np.zeros((8, 8), np.float32)
        mean[3, 5] = 2.0
        plots.save_kl_maps(HERE, random_grids(2), {"local": maps}, means={"local": mean})
        axes = drawn[0].axes[0]
        assert texts(axes)[:3] == ["mean, 2.0 nats", "256.0 nats", "256.0 nats"]
        middles = axes.images[0].get_array()[156 + 8 : 156 + 129 : 16, 8:129:16][:8, :8]
        np.testing.assert_array_equal(middles, colormaps["magma"](mean / 4.0, bytes=True)[..., :3])

    def test_samples_by_level_have_numbered_rows_and_columns(self, tmp_path: Path, drawn: list) -> None:
        grids = random_grids(6)
        plots.save_level_samples(HERE, grids, 3, "global", "local", "title")
        assert texts(drawn[0].axes[0]) == ["local 1", "local 2", "local 3", "global 1", "global 2"]
        drawn[0].savefig(tmp_path / "figure.png", dpi=drawn[0].dpi)
        np.testing.assert_array_equal(tiles(tmp_path / "figure.png"), RGB[grids].reshape(2, 3, 16, 16, 3))

    def test_sheets_without_texts_have_the_same_pixels(self, tmp_path: Path) -> None:
        grids = random_grids(11)
        sheets, _ = plots.example_sheets(grids, np.roll(grids, 1, 0), grids, {})
        assert set(sheets) == {"reconstructions", "samples"}
        plots.save_reconstructions(tmp_path / "reconstructions.png", grids, np.roll(grids, 1, 0))
        plots.save_grids(tmp_path / "samples.png", grids)
        for name, sheet in sheets.items():
            image.imsave(tmp_path / "sheet.png", sheet)
            np.testing.assert_array_equal(tiles(tmp_path / "sheet.png"), tiles(tmp_path / f"{name}.png"))

    def test_a_failed_write_leaves_the_previous_picture(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")
        target = tmp_path / "grids.png"
        plots.save_grids(target, random_grids(1))
        before = target.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(ArcvaeError, match=r"grids.png: could not be written"):
                plots.save_grids(target, random_grids(4))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert target.read_bytes() == before
        assert list(tmp_path.iterdir()) == [target]


class TestCurves:
    @pytest.mark.parametrize(("scale", "shown"), [(None, False), (1.0, False), (25.6, True)])
    def test_the_elbo_scale(self, drawn: list, scale: float | None, shown: bool) -> None:
        plots.save_beta_schedule(HERE, [1, 2], {"beta": [0, 0.1]}, scale)
        axes = drawn[0].axes[0]
        assert bool(axes.child_axes) is shown
        if shown:
            assert axes.child_axes[0].get_ylim()[1] == pytest.approx(25.6 * axes.get_ylim()[1])

    def test_dead_dimensions_are_grey_and_counted(self, drawn: list) -> None:
        kl = np.array([[0.0, 0.5, 0.04], [0.0, 2.0, 0.06]])
        plots.save_kl_heatmap(HERE, {"z": kl}, {"z": 0.3})
        axes, bar = drawn[0].axes
        assert axes.get_title() == "KL of each dimension: 2 of 3 alive"
        picture = axes.images[0]
        shades = picture.cmap(picture.norm(picture.get_array()))
        grey = (np.abs(shades[..., :3] - to_rgb("#BBBBBB")) < 0.01).all(-1)
        np.testing.assert_array_equal(grey, [[True, True], [False, False], [True, False]])
        labels = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
        assert labels == ["0.00 dead", "2.00", "0.06"]
        assert "red: free bits 0.3" in bar.get_ylabel() and [line.get_ydata()[0] for line in bar.lines][-1] == 0.3

    @pytest.mark.parametrize("shape", [(1, 1), (3, 300)])
    def test_no_heat_map_is_too_small_or_large(self, drawn: list, shape: tuple[int, int]) -> None:
        plots.save_kl_heatmap(HERE, {"z": np.zeros(shape)})
        assert len(drawn[0].axes[0].get_yticks()) <= 36


def test_neither_pyplot_nor_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from arcvae_cli.render import plots\n"
        "assert 'matplotlib' not in sys.modules and 'rich' not in sys.modules\n"
        f"plots.save_grids(Path({str(tmp_path / 'g.png')!r}), numpy.zeros((1, 4, 4), numpy.uint8))\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
