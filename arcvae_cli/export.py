"""What travels: weights as safetensors, and ONNX graphs of a model that are compared with it."""

import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arcvae_cli import __version__, checkpoints
from arcvae_cli.errors import ArcvaeError, first_line
from arcvae_cli.evaluation.information import eval_mode
from arcvae_cli.folders import MOVED
from arcvae_cli.models.base import VAE, Batch

OPSET = 18
TOLERANCE = 1e-4  # of the largest value of an output
FIX = "export without ONNX: --no-onnx"


def weights(loaded: checkpoints.Loaded) -> tuple[bytes, dict[str, Any]]:
    """The safetensors file of a model, and the `config.json` beside it, from which `checkpoints.read` rebuilds it.

    Of the user's files the settings keep the names alone, of loggers nothing.
    """
    from safetensors.torch import save

    model, table = loaded.model, loaded.settings.table()
    del table["log"]
    for key in {name.removeprefix("data.") for name in MOVED} & table["data"].keys():
        table["data"][key] = Path(table["data"][key]).name
    tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    config = {"format_version": checkpoints.FORMAT, "arcvae_version": __version__, "epoch": loaded.epoch}
    config |= {"config": table, "kind": model.kind, "levels": model.level_shapes}
    config |= {"structure": json.loads(model.structure.text()), "conditions": checkpoints.content(model)["conditions"]}
    config["digest"] = checkpoints.digest(checkpoints.exported(config, tensors))
    return save(tensors, {"format": "pt"}), config


class Graph(nn.Module):
    """A function of a model as a module, which the exporter takes."""

    def __init__(self, model: VAE, function: Callable[..., Iterable[Tensor]]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*inputs))


def graphs(model: VAE, x: Tensor) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """ONNX files of a model, compared on examples x (N, *positions), and what is in them; no conditions are given.

    Encoder: x -> mean and logvar of each level, a lower one's at the mean above it. Decoder: latents -> logits; of an
    autoregressive one, whose logits need the classes before each position, there is none.
    ArcvaeError as of `to_onnx`.
    """
    levels = list(model.level_shapes)

    def encode(x: Tensor) -> list[Tensor]:
        return [part for level in model.encode(Batch(x), noise=False) for part in (level.mean, level.logvar)]

    def decode(*latents: Tensor) -> list[Tensor]:
        return [model.decode(dict(zip(levels, latents, strict=True)))]

    with eval_mode(model, 0):
        latents = dict(zip(levels, encode(x)[::2], strict=True))
    parts = [f"{level}_{part}" if len(levels) > 1 else part for level in levels for part in ("mean", "logvar")]
    found = {"encoder.onnx": to_onnx(Graph(model, encode), {"x": x}, parts)}
    if not model.autoregressive:
        found["decoder.onnx"] = to_onnx(Graph(model, decode), latents, ["logits"])
    return found


def to_onnx(graph: Graph, inputs: Mapping[str, Tensor], outputs: list[str]) -> tuple[bytes, dict[str, Any]]:
    """The ONNX file of a graph for any number of examples; what goes in and out; how far ONNX Runtime is from PyTorch.

    ArcvaeError where either cannot run it, or where an output differs by more than `TOLERANCE` of its largest value.
    """
    import onnxruntime

    file: Any = io.BytesIO()
    names: Any = {"input_names": [*inputs], "output_names": outputs}
    names["dynamic_axes"] = {name: {0: "batch"} for name in (*inputs, *outputs)}
    few = tuple(value[:2].clone() for value in inputs.values())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # by tracing: torch.export, its successor, takes eight times as long here and needs onnxscript
            torch.onnx.export(graph.eval(), few, file, opset_version=OPSET, dynamo=False, verbose=False, **names)
            expected = graph(*inputs.values())
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        differences = [np.abs(one - other.numpy()).max() for one, other in zip(found, expected, strict=True)]
    except Exception as error:  # whatever an operation without a translation raises
        raise ArcvaeError(f"{outputs[0]}: no ONNX graph ({first_line(error)})", FIX) from error
    for output, difference, other in zip(outputs, differences, expected, strict=True):
        if not difference <= TOLERANCE * (largest := other.abs().max().item()):
            what = f"{output} of ONNX differs from PyTorch's by {difference:.2g}, its largest value is {largest:.2g}"
            raise ArcvaeError(what, FIX)
    about = {"opset": OPSET, "inputs": [*inputs], "outputs": outputs}
    return file.getvalue(), {**about, "max_abs_difference": float(max(differences))}
