import pytest
import torch
from torch import Tensor
from torch.nn import functional

from arcvae_cli import conditions
from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.models import build_model, cells
from arcvae_cli.models.base import VAE, Batch
from arcvae_cli.settings import GridSettings, HierarchicalSettings, ModelSettings

KINDS: dict[str, ModelSettings] = {
    "plain": GridSettings(decoder="autoregressive"),
    "residual": GridSettings(decoder="autoregressive", body="residual", skip_connections=False),
    "hierarchical": HierarchicalSettings(decoder="autoregressive", local_size=5),
}
CANVASES = [ARC, Canvas(3, 3, 2, arc=False), Canvas(5, 9, 256, background=None, arc=False), Canvas(9, 4, 4, outside=3)]


def make(settings: ModelSettings, canvas: Canvas = ARC) -> VAE:
    """A model in which every layer acts: blocks start as the identity, and the decoder as the factorised one."""
    torch.manual_seed(0)
    model = build_model(settings, canvas).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def grids(canvas: Canvas, count: int = 3) -> Tensor:
    return torch.randint(0, canvas.classes, (count, *canvas.shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_logits_depend_on_the_cells_before_alone(settings: ModelSettings) -> None:
    model, x = make(settings), grids(ARC)
    with torch.no_grad():
        latents = model.prior(model.noise(3))
        logits = model.logits_for(latents, Batch(x)).flatten(2)
        for place in (0, 1, 15, 16, 100, 255):
            changed = x.clone().flatten(1)
            changed[:, place] = (changed[:, place] + 1) % 10
            other = model.logits_for(latents, Batch(changed.view_as(x))).flatten(2)
            assert torch.equal(other[:, :, : place + 1], logits[:, :, : place + 1])
            assert place == 255 or not torch.equal(other[:, :, place + 1 :], logits[:, :, place + 1 :])


@pytest.mark.parametrize("canvas", CANVASES, ids=Canvas.describe)
@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_cached_sampling_equals_full_passes(
    settings: ModelSettings, canvas: Canvas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy cells are the argmax of full passes; log p of drawn ones is the sum of what they were drawn from."""
    monkeypatch.setattr(cells, "CACHED", 2 * canvas.cells)  # three grids in two pieces
    model = make(settings, canvas)
    with torch.inference_mode():
        latents = model.prior(model.noise(3))
        greedy = model.generate(latents)
        logits = model.logits_for(latents, Batch(greedy))
        assert torch.equal(logits.argmax(dim=1), greedy) and greedy.unique().numel() > 1
        parts = model.parts(latents) if isinstance(settings, GridSettings) else model.parts(latents, None)[:2]  # type: ignore[attr-defined, operator]
        torch.manual_seed(4)
        drawn, scores = model.cells.generate(*parts, draw=True)  # type: ignore[attr-defined]
        torch.manual_seed(4)
        assert torch.equal(model.generate(latents, draw=True), drawn) and not torch.equal(drawn, greedy)
        forced = model.logits_for(latents, Batch(drawn))
    torch.testing.assert_close(scores, forced, rtol=1e-4, atol=1e-3)
    nats = [functional.cross_entropy(some, drawn, reduction="none").flatten(1).sum(dim=1) for some in (scores, forced)]
    torch.testing.assert_close(*nats)


def test_draws_follow_the_logits() -> None:
    """The share of each class at a cell, given the one before it, is the softmax of the teacher-forced logits."""
    canvas = Canvas(3, 3, 2, arc=False)
    model = make(GridSettings(decoder="autoregressive", latent_dim=2), canvas)
    with torch.inference_mode():
        latents = {"z": torch.tensor([[1.0, -1.0]]).expand(5_000, 2)}
        drawn = model.generate(latents, draw=True)
        expected = model.logits_for(latents, Batch(drawn)).softmax(dim=1)[:, 1]  # (B, H, W)
    error = (drawn - expected).flatten(1).mean(dim=0)
    assert error.abs().max() < 5 * 0.5 / 5_000**0.5


@pytest.mark.parametrize(("loud", "draw"), [(1.0, True), (20.0, False), (20.0, True)])
def test_conditions_are_satisfied(loud: float, draw: bool) -> None:
    texts = ["colours=9", "colours=3 red=yes blue=no", "symmetry=both colours=2", "symmetry=ud height=5"]
    texts += ["symmetry=lr height=3 width=1", "symmetry=both height=5 width=4 colours=1"]
    model = make(KINDS["hierarchical"])
    with torch.inference_mode():
        model.decoder.leave.weight.mul_(loud)  # type: ignore[union-attr, operator]
        model.cells.leave.weight.mul_(loud)  # type: ignore[attr-defined]
        for text in texts:
            wanted = conditions.parse(text.split(), ARC)
            told = torch.from_numpy(conditions.encode(wanted, 4, ARC))
            latents = model.prior(model.noise(4), conditions=told)
            settled, unaided = (
                model.generate(latents, told, draw, constrained).byte().numpy() for constrained in (True, False)
            )
            assert conditions.satisfies(conditions.measure(settled, ARC), wanted, ARC).all(), text
            for name in ("height", "width", "colours"):  # upper bounds, by the masks of the network itself
                if name in wanted:
                    column = conditions.measure(unaided, ARC)[:, conditions.columns(ARC)[name]]
                    assert (column <= wanted[name]).all(), text


def test_hidden_cells_are_hidden_in_training_alone() -> None:
    settings = GridSettings(decoder="autoregressive", body="residual", input_dropout=0.999999)
    model, x = make(settings), grids(ARC)
    latents = {"z": torch.zeros(3, 10)}
    with torch.no_grad():
        told = [model.logits_for(latents, Batch(some)) for some in (x, x.roll(1, dims=2))]
        model.train()
        hidden = [model.logits_for(latents, Batch(some)) for some in (x, x.roll(1, dims=2))]
    assert torch.equal(*hidden) and not torch.equal(*told)
