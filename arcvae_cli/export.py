"""What travels: weights as safetensors, and ONNX graphs of a model that are compared with it."""

import io
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arcvae_cli import __version__, checkpoints
from arcvae_cli.errors import ArcvaeError, first_line
from arcvae_cli.evaluation.information import eval_mode
from arcvae_cli.folders import MOVED
from arcvae_cli.models.base import VAE, Batch

OPSET = 18
TOLERANCE = 1e-4  # of the largest value of an output


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
    about = {"arcvae_version": __version__, "structure": model.structure.text()}
    config = {"format_version": checkpoints.FORMAT, "epoch": loaded.epoch, "config": table, "kind": model.kind}
    config |= {**about, "structure": json.loads(about["structure"]), "levels": model.level_shapes}
    config["conditions"] = checkpoints.content(model)["conditions"]
    config["digest"] = checkpoints.digest(checkpoints.exported(config, tensors))
    return save(tensors, {"format": "pt", **about}), config


class Graph(nn.Module):
    """A function of a model as a module, its inputs by name, and the names of its outputs."""

    def __init__(self, model: VAE, function: Any, inputs: Mapping[str, Tensor], outputs: list[str]) -> None:
        super().__init__()
        self.model, self.function, self.inputs, self.outputs = model, function, inputs, outputs
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(*inputs))


def graphs(model: VAE, x: Tensor) -> dict[str, Graph]:
    """The graphs of a model by their files, with inputs for examples x (N, *positions); no conditions are given.

    Encoder: x -> mean and logvar of each level, a lower one's at the mean above it. Decoder: latents -> logits. Prior,
    of several levels: standard normal noise -> latents.
    """
    levels = list(model.level_shapes)

    def named(values: Iterable[Tensor]) -> dict[str, Tensor]:
        return dict(zip(levels, values, strict=True))

    def encode(x: Tensor) -> list[Tensor]:
        return [part for level in model.encode(Batch(x), noise=False) for part in (level.mean, level.logvar)]

    with eval_mode(model, 0):
        latents = named(encode(x)[::2])
        noise = {f"{level}_noise": value for level, value in model.noise(len(x)).items()}
    parts = [f"{level}_{part}" if len(levels) > 1 else part for level in levels for part in ("mean", "logvar")]
    made = {"encoder.onnx": Graph(model, encode, {"x": x}, parts)}
    made["decoder.onnx"] = Graph(model, lambda *z: (model.decode(named(z)),), latents, ["logits"])
    if len(levels) > 1:
        made["prior.onnx"] = Graph(model, lambda *noise: model.prior(named(noise)).values(), noise, levels)
    return made


@contextmanager
def without_stdout() -> Iterator[None]:
    """Drops what compiled code prints: the exporter prints a graph that fails, where a JSON document may be due."""
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def to_onnx(graph: Graph, check: bool) -> tuple[bytes, float | None]:
    """The ONNX file of a graph for any number of examples, and how far ONNX Runtime is from PyTorch, if asked.

    ArcvaeError where either cannot run it, or where an output differs by more than `TOLERANCE` of its largest value.
    """
    inputs, worst = graph.inputs, 0.0
    file: Any = io.BytesIO()
    names: Any = {"input_names": [*inputs], "output_names": graph.outputs}
    names["dynamic_axes"] = {name: {0: "batch"} for name in (*inputs, *graph.outputs)}
    few = tuple(value[:2].clone() for value in inputs.values())
    try:
        with torch.no_grad(), warnings.catch_warnings(), without_stdout():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Using len")  # which would fix the number of examples
            # by tracing: torch.export, its successor, takes eight times as long here and needs onnxscript
            torch.onnx.export(graph, few, file, opset_version=OPSET, dynamo=False, verbose=False, **names)
            expected = graph(*inputs.values())
        if not check:
            return file.getvalue(), None
        import onnxruntime

        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:  # whatever an operation without a translation raises
        raise ArcvaeError(first_line(error)) from error
    for name, one, other in zip(graph.outputs, map(torch.from_numpy, found), expected, strict=True):
        difference, largest = (one - other).abs().max().item(), other.abs().max().item()
        if not difference <= TOLERANCE * largest:
            raise ArcvaeError(f"{name} differs from PyTorch's by {difference:.2g}, its largest value is {largest:.2g}")
        worst = max(worst, difference)
    return file.getvalue(), worst
