from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from arcvae_cli.controllers import Target
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.records import EpochRecord
from arcvae_cli.render import plots
from arcvae_cli.render.terminal import PALETTE


def random_grids(count: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 10, (count, height, width), np.uint8)


def pixels(path: Path) -> np.ndarray:
    """RGB of a PNG as (h, w, 3) uint8."""
    return (image.imread(path)[..., :3] * 255).round().astype(np.uint8)


def tiles(sheet: np.ndarray, side: int = 16) -> np.ndarray:
    """Colours near the corners of the cells of each tile, found by its lines: (rows, columns, side, side, 3)."""
    line = (sheet == [0x55, 0x55, 0x55]).all(2)
    tops, lefts = (np.flatnonzero(line.sum(axis) > line.sum(axis).max() / 2) for axis in (1, 0))
    tops, lefts = tops[:: side + 1], lefts[:: side + 1]
    corners = np.arange(side) * 8 + 2
    return np.array([[sheet[top + corners][:, left + corners] for left in lefts] for top in tops])


RGB = np.array([[round(255 * part) for part in to_rgb(colour)] for colour in PALETTE], np.uint8)
HERE = Path("unused.png")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that are drawn, which are also rendered."""
    figures: list = []

    def keep(figure, path) -> None:
        figure.savefig(io.BytesIO(), format="png")
        figures.append(figure)

    monkeypatch.setattr(plots, "_write", keep)
    return figures


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


class TestSheets:
    def test_grids_can_be_read_back_and_blank_ones_are_marked(self, tmp_path: Path, drawn: list) -> None:
        grids = random_grids(6)
        grids[4] = 0
        plots.save_grids(HERE, grids, columns=3, title="six", titles=list("abcdef"))
        plots.save_level_samples(HERE, grids, 3, "global", "local", "title")
        found = [texts(figure.axes[0]) for figure in drawn]
        assert found[0] == [*"abcdef", "blank"]
        assert found[1] == ["local 1", "local 2", "local 3", "global 1", "global 2", "blank"]
        for figure in drawn:
            mark = figure.axes[0].texts[-1]
            assert mark.get_position() == (139 + 64.5, 17 + 139 + 17 + 64.5), "in the middle of the fifth"
            mark.remove()
            figure.savefig(tmp_path / "figure.png", dpi=figure.dpi)
            np.testing.assert_array_equal(tiles(pixels(tmp_path / "figure.png")), RGB[grids].reshape(2, 3, 16, 16, 3))

    def test_reconstructions_stand_under_their_originals_and_errors_below(self, tmp_path: Path, drawn: list) -> None:
        originals = random_grids(20)
        reconstructions = originals.copy()
        reconstructions[:, 3, 5] = (originals[:, 3, 5] + 1) % 10
        plots.save_reconstructions(HERE, originals, reconstructions, title="run, epoch 3")
        (figure,) = drawn
        figure.savefig(tmp_path / "r.png", dpi=figure.dpi)
        read = tiles(pixels(tmp_path / "r.png"))
        assert read.shape[:2] == (6, 8)  # two bands of three rows, 16 pairs of the 20
        np.testing.assert_array_equal(read[[0, 3]].reshape(16, 16, 16, 3), RGB[originals[:16]])
        np.testing.assert_array_equal(read[[1, 4]].reshape(16, 16, 16, 3), RGB[reconstructions[:16]])
        errors = read[[2, 5]].reshape(16, 16, 16, 3)
        assert (errors[:, 3, 5] == 255).all() and errors.sum() == 16 * 3 * 255, "wrong cells white, right ones black"
        assert texts(figure.axes[0]) == ["1 wrong"] * 16 + ["original"] * 2 + ["reconstruction"] * 2 + ["error"] * 2
        assert [text.get_text() for text in figure.texts] == ["run, epoch 3"]
        assert [text.get_text() for text in figure.legends[0].texts] == ["right cell", "wrong cell"]
        sheets, _ = plots.example_sheets(originals, reconstructions, originals, {})
        assert set(sheets) == {"reconstructions", "samples"}
        np.testing.assert_array_equal(tiles(sheets["reconstructions"]), read)

    def test_a_last_row_may_be_short_and_extents_are_drawn(self, tmp_path: Path, drawn: list) -> None:
        grids, extents = np.zeros((9, 16, 16), np.uint8), np.full((9, 2), [5, 7], np.uint8)
        extents[4] = 16  # the whole canvas
        plots.save_reconstructions(HERE, grids, grids, extents)
        drawn[0].legends[0].remove()
        drawn[0].savefig(tmp_path / "extents.png", dpi=drawn[0].dpi)
        lines = (pixels(tmp_path / "extents.png") == [0, 0xFF, 0xC8]).all(2).sum()
        assert lines == 8 * 3 * (41 * 57 - 37 * 53), "two pixels wide, in the rows of grids and of errors"
        assert texts(drawn[0].axes[0])[3:5] == ["5x7, 0 wrong", "16x16, 0 wrong"]

    def test_maps_stand_under_their_originals_in_one_scale(self, drawn: list) -> None:
        grids, mean = random_grids(3), np.full((8, 8), 0.5, np.float32)
        maps = np.zeros((3, 8, 8), np.float32)
        maps[0, 1, 2], maps[2, 7, 0] = 2.5, 1.25
        sheets, top = plots.example_sheets(grids, grids, grids, {"local": maps})
        np.testing.assert_array_equal(tiles(sheets["kl_maps"])[0], RGB[grids])
        squares = sheets["kl_maps"][139:].reshape(129, -1, 3)
        cells = np.array([squares[8::16][:8, start + 8 : start + 129 : 16] for start in range(0, 3 * 139, 139)])
        np.testing.assert_array_equal(cells, colormaps["magma"](maps / 2.5, bytes=True)[..., :3])
        plots.save_kl_maps(HERE, grids, {"local": maps}, means={"local": mean})
        axes, bar = drawn[0].axes
        assert texts(axes) == ["mean, 32.0 nats", "2.5 nats", "0.0 nats", "1.2 nats", "original", "KL of local"]
        assert bar.get_ylabel() == "KL of a cell, nats" and bar.get_ylim() == (0, top) == (0, 2.5)

    def test_a_failed_write_leaves_the_previous_picture(self, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")
        target = tmp_path / "new" / "grids.png"
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
        assert list(target.parent.iterdir()) == [target]


class TestCurves:
    def test_the_elbo_scale_and_the_target_of_a_loop(self, drawn: list) -> None:
        target = Target("local", "kl", 20.0, 25.0, 0.1, None)
        for scale in (None, 1.0, 25.6):
            plots.save_beta_schedule(HERE, [1, 2], {"beta": [0, 0.1]}, scale, [(2.0, (target,))], "run")
        for figure in drawn:
            assert figure.get_suptitle() == "run"
            value, aim = figure.axes[1].lines
            assert (value.get_ydata(), aim.get_ydata()) == ((20,), (25,)) and value.get_color() == aim.get_color()
        beta = drawn[2].axes[0]
        assert [len(figure.axes[0].child_axes) for figure in drawn] == [0, 0, 1]
        assert beta.child_axes[0].get_ylim()[1] == pytest.approx(25.6 * beta.get_ylim()[1])

    @pytest.mark.parametrize(("unit", "levels"), [("token", ("z",)), ("pixel", ("global", "local"))])
    def test_training_curves(self, drawn: list, unit: str, levels: tuple[str, ...]) -> None:
        """Of the metrics that records log, a value that was not finite left out."""
        kl = {name: [1.0, 2.0] for name in levels}
        epochs = []
        for number in (1, 2, 3):
            loss = math.nan if number == 2 else 10.0 / number
            metrics = EpochMetrics(9, loss, 3.0, dict.fromkeys(levels, 4.0), kl, 0.9, 0.5, 0.1)
            betas = dict.fromkeys(levels, 0.1 * number)
            record = EpochRecord(number, 9, betas, 0.1, metrics, metrics, loss, loss, number < 3, 1.0, unit)
            epochs.append(record.metrics())
        plots.save_training_curves(HERE, "mine", epochs)
        panels = {axes.get_ylabel(): axes for axes in drawn[0].axes}
        assert [*panels] == ["loss", "reconstruction", "KL, nats", "accuracy", "active dimensions", "beta"]
        val, train, best = panels["loss"].lines
        np.testing.assert_allclose(val.get_ydata(), [10, math.nan, 10 / 3])
        assert (val.get_linestyle(), train.get_linestyle(), val.get_color()) == ("-", "--", train.get_color())
        assert best.get_xdata() == [2, 2] and drawn[0].get_suptitle() == "mine"
        names = {"pixel": ["pixel", "non-black", "exact grid"], "token": ["token", "sequence"]}[unit]
        assert panels["accuracy"].get_legend_handles_labels()[1] == names
        shown = [label for label in ("total", *levels) if len(levels) > 1]
        assert panels["KL, nats"].get_legend_handles_labels()[1] == shown
        sums = [line.get_ydata()[0] for line in panels["KL, nats"].lines[:-1:2]]
        assert sums == ([6, 3, 3] if len(levels) > 1 else [3])
        betas = [line.get_ydata().tolist() for line in panels["beta"].lines[:-1]]
        np.testing.assert_allclose(betas, [[0.1, 0.2, 0.3]] * len(levels))

    def test_dead_dimensions_are_grey_and_counted(self, drawn: list) -> None:
        kl = np.array([[0.0, 0.5, 0.04], [0.0, 2.0, 0.06]])
        plots.save_kl_heatmap(HERE, {"z": kl}, {"z": 0.3}, "run")
        axes, bar = drawn[0].axes
        assert axes.get_title() == "run, 2 of 3 alive"
        picture = axes.images[0]
        shades = picture.cmap(picture.norm(picture.get_array()))
        grey = (np.abs(shades[..., :3] - to_rgb("#BBBBBB")) < 0.01).all(-1)
        np.testing.assert_array_equal(grey, [[True, True], [False, False], [True, False]])
        labels = [label.get_text() for label in axes.child_axes[0].get_yticklabels()]
        assert labels == ["0.00 dead", "2.00", "0.06"]
        assert "red: free bits 0.3" in bar.get_ylabel() and [line.get_ydata()[0] for line in bar.lines][-1] == 0.3
        plots.save_kl_heatmap(HERE, {"z": np.zeros((3, 300))})
        assert len(drawn[1].axes[0].get_yticks()) <= 36


def test_neither_pyplot_nor_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, numpy; from pathlib import Path; from arcvae_cli.render import plots\n"
        "assert 'matplotlib' not in sys.modules and 'rich' not in sys.modules\n"
        f"plots.save_grids(Path({str(tmp_path / 'g.png')!r}), numpy.zeros((1, 4, 4), numpy.uint8))\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
