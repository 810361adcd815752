import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from arcvae_cli import conditions
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.models import hierarchical
from arcvae_cli.models.base import Batch, Output
from arcvae_cli.models.hierarchical import HierarchicalVAE, constrained_decode
from arcvae_cli.objective import Objective
from arcvae_cli.settings import HierarchicalSettings, ObjectiveSettings

pytestmark = pytest.mark.usefixtures("narrow")
SIDE, PLACE = 16, conditions.columns(ARC)


def make(canvas: Canvas = ARC, **settings: object) -> HierarchicalVAE:
    """A model whose levels all say something: a fresh one's local prior and residual blocks start at nothing."""
    torch.manual_seed(0)
    model = HierarchicalVAE(HierarchicalSettings.model_validate(settings), canvas)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def grids(count: int) -> Tensor:
    return torch.randint(0, 10, (count, SIDE, SIDE), generator=torch.Generator().manual_seed(1))


def given(count: int, *texts: str, canvas: Canvas = ARC) -> Tensor:
    return torch.from_numpy(conditions.encode(conditions.parse(texts, canvas), count, canvas))


@pytest.mark.parametrize(("size", "channels", "dim"), [(8, 4, 16), (4, 2, 3), (16, 1, 5)])
def test_levels_and_logits(size: int, channels: int, dim: int) -> None:
    model = make(local_size=size, local_channels=channels, global_dim=dim)
    batch = Batch(grids(3), conditions=given(3, "colours=3", "symmetry=lr"))
    output = model(batch, noise=False)
    top, local = output.levels
    assert output.logits.shape == (3, 10, SIDE, SIDE) and output.logits.dtype == torch.float32
    assert top.sample.shape == (3, dim) and top.kl.shape == (3, dim) and top.prior_mean is None
    assert local.sample.shape == (3, channels, size, size) and model.level_sizes == {"global": dim, "local": channels}
    posterior, prior = (Normal(mean, torch.exp(0.5 * log)) for mean, log in ((local.mean, local.logvar), local.prior))
    torch.testing.assert_close(local.kl, kl_divergence(posterior, prior).sum(dim=(2, 3)))
    torch.testing.assert_close(local.map(), kl_divergence(posterior, prior).sum(dim=1))
    assert local.kl.min() > 0.01 and local.prior[0].abs().max() > 0.01, "the prior is learned"
    decoded = model.decode({level.name: level.sample for level in output.levels}, batch.conditions)
    torch.testing.assert_close(output.logits, decoded)
    drawn = model.prior({level.name: level.offset() for level in output.levels}, conditions=batch.conditions)
    for level in output.levels:
        torch.testing.assert_close(drawn[level.name], level.sample, atol=1e-4, rtol=1e-4)


def test_each_weight_acts_on_its_own_level_alone() -> None:
    """With one weight 0 and the other 1 the gradient is that of the reconstruction and the one KL, to the last bit."""
    model, objective, batch = make(), Objective(ObjectiveSettings()), Batch(grids(8))

    def gradients(level: str | None, **betas: float) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        output: Output = model(batch)
        kl = {one.name: one.kl.mean(dim=0).sum() for one in output.levels}
        nats = objective.reconstruction(output.logits, batch).mean()
        (objective(output, batch, betas).loss if level is None else nats + kl[level]).backward()
        return [torch.full((), torch.pi) if one.grad is None else one.grad for one in model.parameters()]

    for heard, silent in (("global", "local"), ("local", "global")):
        found, wanted = gradients(None, **{silent: 0.0, heard: 1.0}), gradients(heard)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_training_drops_conditions_at_random_and_evaluation_does_not() -> None:
    model = make(condition_dropout=0.25)
    full = torch.ones(4000, len(model.attributes), dtype=torch.int64)
    assert model.dropped_conditions(full, full) is full
    kept = (model.train().dropped_conditions(full, full) == 1).sum(dim=1)
    # 0.25 on purpose, and of the rest those whose random part came out empty: 1 / (A + 1)
    wanted = 0.25 + 0.75 / (len(model.attributes) + 1)
    assert abs((kept == 0).double().mean().item() - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 4000)
    assert set(kept.tolist()) == set(range(len(model.attributes) + 1)), "subsets of every size are seen"


@pytest.mark.parametrize("loud", [1.0, 100.0])
def test_conditions_on_cells_are_satisfied(loud: float) -> None:
    """Whatever it has learned: the logits of trained models lie some 50 apart."""
    model = make()
    with torch.no_grad():
        model.decoder.leave.weight.mul_(loud)
    colours = ["colours=0", "colours=9", "colours=3 red=yes", "red=no blue=no", "symmetry=both colours=2"]
    extents = ["height=5 width=7", "symmetry=ud height=5", "symmetry=lr height=3 width=1"]
    for text in (*colours, *extents, "symmetry=both height=5 width=4 colours=1"):
        wanted, told = conditions.parse(text.split(), ARC), given(20, *text.split())
        with torch.no_grad():
            logits = model.decode(model.prior(model.noise(20), conditions=told), told)
        drawn = logits.argmax(1).to(torch.uint8).numpy()
        for name, value in wanted.items():
            column = conditions.measure(drawn, ARC)[:, PLACE[name]]
            if name.startswith("symmetry"):
                assert (column[drawn.any(axis=(1, 2))] == value).all(), text
            elif value == 0 or not name.startswith("colour_"):  # upper bounds: no logit rules out that a cell is black
                assert (column <= value).all(), text
        settled = model.argmax_decode(logits, told).to(torch.uint8).numpy()
        assert conditions.satisfies(conditions.measure(settled, ARC), wanted, ARC).all(), text


TEXTS = ("classes=3", "classes=1", "symmetry=both", "symmetry=lr classes=2")
CANVASES = {
    "background": (
        Canvas(12, 20, 6, arc=False),
        ("height=7 width=19 class_3=yes", "class_1=no", "symmetry=ud height=5"),
    ),
    "background 4": (Canvas(20, 12, 5, background=4, arc=False), ("height=20 width=1", "class_0=yes class_2=no")),
    "outside": (Canvas(12, 20, 6, outside=5, arc=False), ("height=3 width=20", "width=5 symmetry=both", "class_4=yes")),
    "none": (Canvas(9, 5, 5, background=None, arc=False), ("class_0=no", "class_0=yes class_4=yes classes=2")),
    "many": (Canvas(12, 20, 40, arc=False), ("classes=39", "height=4 width=9 classes=5")),
}


@pytest.mark.parametrize(("canvas", "texts"), CANVASES.values(), ids=CANVASES)
def test_conditions_are_satisfied_on_every_canvas(canvas: Canvas, texts: tuple[str, ...]) -> None:
    model = make(canvas)
    for text in (*TEXTS, *texts):
        wanted, told = conditions.parse(text.split(), canvas), given(20, *text.split(), canvas=canvas)
        with torch.no_grad():
            logits = model.decode(model.prior(model.noise(20), conditions=told), told)
        settled = model.argmax_decode(logits, told).to(torch.uint8).numpy()
        assert conditions.satisfies(conditions.measure(settled, canvas), wanted, canvas).all(), text


def test_training_never_masks_the_true_grid() -> None:
    """Conditions are true of the grid, so that it costs no more than a bad guess, wherever the model is wrong."""
    model = make(condition_dropout=0.0).train()
    x = torch.zeros(60, SIDE, SIDE, dtype=torch.int64)
    for index, grid in enumerate(x):
        side = 1 + index % 7
        corner = index % (SIDE - 2 * side)
        quarter = torch.randint(0, 4, (side, side), generator=torch.Generator().manual_seed(index))
        half = torch.cat([quarter, quarter.flip(1)], dim=1)
        grid[corner : corner + 2 * side, corner : corner + 2 * side] = torch.cat([half, half.flip(0)])
    told = torch.from_numpy(conditions.measure(x.to(torch.uint8).numpy(), ARC))
    assert (told[:, -2:] == 1).double().mean() > 0.9
    nats = torch.nn.functional.cross_entropy(model(Batch(x, conditions=told)).logits, x, reduction="none")
    assert nats.max() < 150.0


def test_conditions_are_the_sum_of_their_rows_with_its_gradient() -> None:
    layer = hierarchical.Conditions(ARC, 7).double()
    chosen = given(5, "colours=3", "symmetry=lr", "height=4")
    chosen[2] = conditions.NOT_GIVEN
    plain = layer.table(chosen + layer.offsets).sum(dim=1)
    torch.testing.assert_close(layer(chosen), plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn(5, 7, dtype=torch.float64)
    own, other = (torch.autograd.grad(out, layer.table.weight, weights) for out in (layer(chosen), plain))
    torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def random_logits(count: int, black: float) -> Tensor:
    """Mostly black, as grids are."""
    logits = torch.randn(count, 10, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += black
    return logits


def decoded(logits: Tensor, *texts: str) -> tuple[Tensor, Tensor]:
    """The grids under these conditions, and their attributes."""
    found = constrained_decode(logits, given(len(logits), *texts), ARC)
    return found, torch.from_numpy(conditions.measure(found.to(torch.uint8).numpy(), ARC))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_missing_colours_are_added_at_the_lowest_cost(count: int) -> None:
    logits = random_logits(20, black=30.0)
    assert torch.equal(decoded(logits, "objects=3")[0], logits.argmax(1)), "cells that no condition is on"
    found, measured = decoded(logits, f"colours={count}")
    assert (measured[:, PLACE["colours"]] == count).all()
    assert ((found > 0).sum(dim=(1, 2)) == count).all(), "no more cells are changed than have to be"
    gain = logits[:, 1:] - logits[:, :1]
    for one, index in zip(found, gain.flatten(1).argmax(dim=1).tolist(), strict=True):
        assert one.flatten()[index % SIDE**2] == index // SIDE**2 + 1


def test_required_colours_come_first_excluded_ones_never_and_the_last_cell_of_a_colour_stays() -> None:
    _, measured = decoded(random_logits(20, black=30.0), "red=yes", "colours=2", "blue=no")
    assert measured[:, [PLACE["colour_2"], PLACE["colour_1"], PLACE["colours"]]].tolist() == [[1, 0, 2]] * 20
    logits = torch.zeros(1, 10, SIDE, SIDE)
    logits[:, 0] = 20.0
    logits[0, 3, 2, 2] = 30.0  # the only cell that is not black
    logits[0, 5, 2, 2] = 29.0  # where 5 would be cheapest
    logits[0, 5, 9, 9] = 15.0
    found = decoded(logits, "colours=2")[0][0]
    assert (found[2, 2], found[9, 9]) == (3, 5) and (found > 0).sum() == 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (16, 1), (16, 16)])
def test_the_last_row_and_column_are_coloured(height: int, width: int) -> None:
    logits = random_logits(8, black=3.0)
    logits[:, 0, height - 1], logits[:, 0, :, width - 1] = 30.0, 30.0
    logits[:, 1:, height:], logits[:, 1:, :, width:] = 0.0, 0.0
    logits[:, 0, height:], logits[:, 0, :, width:] = 60.0, 60.0  # as the decoder leaves what lies beyond
    _, measured = decoded(logits, f"height={height}", f"width={width}")
    assert (measured[:, PLACE["height"]] == height).all() and (measured[:, PLACE["width"]] == width).all()


@pytest.mark.parametrize("dims", [(2,), (3,), (2, 3)])
def test_a_symmetric_grid_stays_symmetric(dims: tuple[int, ...]) -> None:
    logits = random_logits(10, black=20.0)
    logits[:, 4] += 19.0  # some of it
    for dim in dims:
        logits = (logits + logits.flip(dim)) / 2
    found, measured = decoded(logits, "colours=4")
    assert (measured[:, PLACE["colours"]] == 4).all()
    assert all(torch.equal(found, found.flip(dim - 1)) for dim in dims)
