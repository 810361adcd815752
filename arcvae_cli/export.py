"""What travels: weights as safetensors, and ONNX graphs of a model that are compared with it."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcvae_cli import __version__, checkpoints
from arcvae_cli.errors import ArcvaeError, first_line
from arcvae_cli.folders import MOVED
from arcvae_cli.models.base import VAE, Batch

OPSET = 18  # that PyTorch's translations are written in
TOLERANCE = 1e-4  # of the largest value of an output


def weights(loaded: checkpoints.Loaded) -> tuple[bytes, dict[str, Any]]:
    """The safetensors file of a model, and what `checkpoints.read` needs beside it as plain values.

    Of the user's files the settings keep the names alone, of loggers nothing.
    """
    from safetensors.torch import save

    model, table = loaded.model, loaded.settings.table()
    del table["log"]
    data = table["data"]
    data |= {key: Path(data[key]).name for name in MOVED if (key := name.removeprefix("data.")) in data}
    tensors = {
        name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
    }
    config = {"format_version": checkpoints.FORMAT, "arcvae_version": __version__, "epoch": loaded.epoch}
    config |= {"settings": table, "kind": model.kind, "structure": json.loads(model.structure.text())}
    config |= {"levels": model.level_shapes, "conditions": checkpoints.content(model)["conditions"]}
    config["digest"] = checkpoints.digest(checkpoints.exported(config, tensors))
    described = {"format": "pt", "arcvae_version": __version__, "structure": model.structure.text()}
    return save(tensors, described), config


class Graph(nn.Module):
    """A function of a model as a module, its inputs by name, and the names of its outputs."""

    def __init__(
        self, model: VAE, function: Callable[..., Sequence[Tensor]], inputs: Mapping[str, Tensor], outputs: list[str]
    ) -> None:
        super().__init__()
        self.model, self.function, self.inputs, self.outputs = model, function, inputs, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*inputs))


def graphs(model: VAE, x: Tensor) -> dict[str, Graph]:
    """The graphs of a model by their files, with inputs for examples x (N, *positions); no conditions are given.

    Encoder: x -> mean and logvar of each level, a lower one's at the mean above it. Decoder: latents -> logits. Prior,
    of several levels: standard normal noise -> latents.
    """
    levels = list(model.level_shapes)
    parts = [f"{f'{level}_' * (len(levels) > 1)}{part}" for level in levels for part in ("mean", "logvar")]

    def encode(x: Tensor) -> list[Tensor]:
        return [part for level in model.encode(Batch(x), noise=False) for part in (level.mean, level.logvar)]

    def decode(*latents: Tensor) -> list[Tensor]:
        return [model.decode(dict(zip(levels, latents, strict=True)))]

    def draw(*noise: Tensor) -> list[Tensor]:
        return list(model.prior(dict(zip(levels, noise, strict=True))).values())

    with torch.no_grad():
        latents = dict(zip(levels, encode(x)[::2], strict=True))
    made = {"encoder.onnx": Graph(model, encode, {"x": x}, parts)}
    made["decoder.onnx"] = Graph(model, decode, latents, ["logits"])
    if len(levels) > 1:
        noise = {f"{level}_noise": value for level, value in model.noise(len(x)).items()}
        made["prior.onnx"] = Graph(model, draw, noise, levels)
    return made


def to_onnx(graph: Graph) -> bytes:
    """The ONNX file of a graph for any number of examples. ArcvaeError if PyTorch cannot export it."""
    few, batch = tuple(value[:2].clone() for value in graph.inputs.values()), {0: torch.export.Dim("batch")}
    names: dict[str, Any] = {"input_names": list(graph.inputs), "output_names": graph.outputs, "opset_version": OPSET}
    shapes = (tuple(batch for _ in few),)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(graph, few, dynamic_shapes=shapes, dynamo=True, verbose=False, **names)
        assert program is not None
        proto = program.model_proto
    except Exception as error:  # whatever an operator without a translation raises
        raise ArcvaeError(f"PyTorch cannot export it ({first_line(error)})") from error
    if not all(value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input):
        raise ArcvaeError("the number of examples would be fixed")
    return proto.SerializeToString()


def compare(file: bytes, graph: Graph) -> float:
    """The largest difference between the outputs of ONNX Runtime and PyTorch for the inputs of a graph.

    ArcvaeError where it is more than `TOLERANCE` of the largest value of an output.
    """
    import onnxruntime

    session, worst = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]), 0.0
    found = session.run(None, {name: value.numpy() for name, value in graph.inputs.items()})
    with torch.no_grad():
        expected = graph(*graph.inputs.values())
    for name, one, other in zip(graph.outputs, map(torch.from_numpy, found), expected, strict=True):
        difference, largest = (one - other).abs().max().item(), other.abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise ArcvaeError(f"{name} differs from PyTorch's by {difference:.2g}, its largest value is {largest:.2g}")
        worst = max(worst, difference)
    return worst
