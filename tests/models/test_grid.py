import pytest
import torch
from torch.nn import functional

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.conditions import NOT_GIVEN, measure
from arcvae_cli.errors import InputError
from arcvae_cli.models import build_model, grid, hierarchical
from arcvae_cli.models.base import Batch
from arcvae_cli.models.grid import Upsample
from arcvae_cli.settings import GridSettings, HierarchicalSettings, ModelSettings

LAST = torch.channels_last
CANVASES = [(3, 3, 2), (5, 5, 4), (12, 20, 9), (30, 30, 10), (64, 64, 3), (7, 10, 256)]
MODELS = {
    "plain": GridSettings(),
    "residual": GridSettings(body="residual"),
    "hierarchical": HierarchicalSettings(local_size=5),
    "autoregressive": GridSettings(decoder="autoregressive", body="residual", input_dropout=0.2),
    "autoregressive hierarchical": HierarchicalSettings(decoder="autoregressive", local_size=5),
}


def grids() -> Batch:
    return Batch(torch.randint(0, 10, (6, 16, 16), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("body", ["plain", "residual"])
@pytest.mark.parametrize("posterior", ["softplus", "logvar"])
def test_shapes_levels_gradients_and_bounds(body: str, posterior: str) -> None:
    model = build_model(GridSettings.model_validate({"body": body, "posterior": posterior, "latent_dim": 7}))
    output = model(grids())
    assert output.logits.shape == (6, 10, 16, 16) and output.logits.dtype == torch.float32
    (level,), (mean,) = output.levels, model.encode(grids(), noise=False)
    assert torch.equal(mean.sample, level.mean) and not torch.equal(level.sample, level.mean)
    assert level.name == "z" and model.level_sizes == {"z": 7}
    assert level.kl.shape == level.sample.shape == (6, 7)
    (output.logits.square().mean() + level.kl.mean()).backward()
    for name, parameter in model.named_parameters():
        if "back" not in name and "widen" not in name and "norm" not in name:  # behind a zero until the first step
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    for bias in (-1e4, 1e4):
        with torch.no_grad():
            model.encoder.spread.bias.fill_(bias)  # type: ignore[union-attr, operator]
        with torch.autocast("cpu", torch.bfloat16):
            output = model(grids())
        (level,) = output.levels
        assert level.logvar.dtype == torch.float32
        assert (level.logvar >= -12.0).all() and (level.logvar <= 4.0 + 1e-5).all()
        (output.logits.sum() + level.kl.sum()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_sizes_and_initial_weights() -> None:
    model = build_model(GridSettings())
    assert sum(parameter.numel() for parameter in model.parameters()) == 792_542
    torch.manual_seed(0)
    model = build_model(GridSettings(body="residual"))
    torch.manual_seed(0)
    assert torch.equal(model.encoder.body[7].weight, torch.nn.Linear(2048, 512).weight), "created first"


def test_upsampling_is_the_transposed_convolution() -> None:
    own, twin = (kind(5, 3, 4, stride=2, padding=1) for kind in (Upsample, torch.nn.ConvTranspose2d))
    twin.load_state_dict(own.state_dict())
    x = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(own(x), twin(x))
    gradients = [torch.autograd.grad(one(x).square().sum(), list(one.parameters())) for one in (own, twin)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("size", CANVASES, ids=str)
def test_every_canvas_has_a_model_that_learns_everywhere(
    settings: ModelSettings, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = Canvas(*size, arc=False)
    monkeypatch.setattr(grid, "OUTPUTS", 4 * 30 * 30)  # a convolution to the classes from 30x30 cells on
    monkeypatch.setattr(grid, "CHANNELS", (8,) * 5)  # faster
    monkeypatch.setattr(grid, "WIDE", 32)
    monkeypatch.setattr(hierarchical, "WIDE", 32)
    model = build_model(settings, canvas).train()
    x = torch.randint(0, canvas.classes, (3, *canvas.shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # blocks start as the identity
    conditions = torch.from_numpy(measure(x.byte().numpy(), canvas))
    conditions[0] = NOT_GIVEN  # what is given is not predicted
    with torch.autocast("cpu", torch.bfloat16):
        output = model(Batch(x, conditions=conditions))
    assert output.logits.shape == (3, canvas.classes, *canvas.shape) and output.logits.dtype == torch.float32
    assert {level.name: tuple(level.mean.shape[1:]) for level in output.levels} == model.level_shapes
    nats = functional.cross_entropy(output.logits, x, reduction="sum")
    (nats + sum(level.kl.sum() for level in output.levels)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    if not model.autoregressive or canvas.cells <= 900:  # 4,096 cells one after the other take three seconds
        assert model.eval().reconstruct(Batch(x)).shape == x.shape


@pytest.mark.parametrize(
    ("side", "channels"),
    [(3, [32]), (4, [32]), (8, [32, 64]), (16, [32, 64, 128]), (30, [32, 64, 128, 128]), (64, [32, 64, *[128] * 3])],
)
def test_channels_follow_the_size_or_the_settings(side: int, channels: list[int]) -> None:
    for encoder in (None, (8, 16)):
        for decoder in (None, (12,), (16, 8)):
            settings = GridSettings(encoder_channels=encoder, decoder_channels=decoder)
            model, given = build_model(settings, Canvas(side, side, 3)), channels if encoder is None else [*encoder]
            convolutions = [one for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
            assert [one.out_channels for one in convolutions] == [*given, 3]
            ups = [one.in_channels for one in model.modules() if isinstance(one, Upsample)]
            assert [*ups, convolutions[-1].in_channels] == (given[::-1] if decoder is None else [*decoder])


def test_more_channels_than_halvings_are_refused() -> None:
    build_model(GridSettings(encoder_channels=(4, 4, 4, 4, 4)), ARC)
    with pytest.raises(InputError, match=r"model.decoder_channels: 4 numbers, 3x4 can be halved 2 times"):
        build_model(GridSettings(decoder_channels=(4, 4, 4, 4)), Canvas(3, 4, 2))
