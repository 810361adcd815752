"""`arcvae export`: the model of a run as files that travel, with a model card from the run's own numbers."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
import typer

from arcvae_cli import __version__, domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs
from arcvae_cli.console import Console
from arcvae_cli.errors import InputError
from arcvae_cli.files import atomic_write, is_file, size

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded

EXAMPLES = 64  # that ONNX graphs are compared on
CARD = Path(__file__).with_name("card.md")
RunArgument = Annotated[str, typer.Argument(help=reading.CHECKPOINT, autocompletion=complete_runs)]


def export(
    run: RunArgument = "latest",
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="ONNX files")] = True,
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the weights as safetensors, ONNX files that are compared with the model, and a model card."""
    console = Console(quiet=quiet, as_json=as_json)
    for name in ("safetensors", "onnx", "onnxruntime") if onnx else ("safetensors",):
        if find_spec(name) is None:
            raise InputError(f"arcvae export: {name} is not installed", "pip install 'arcvae[export]'")
    if output is not None and (there := next(output.glob("[!.]*"), None)):
        raise InputError(f"--output {output}: has a {there.name} already", "choose an empty folder")
    loaded = reading.open_checkpoint(run, runs_dir, "cpu", console)
    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import draw_prior, generate
    from arcvae_cli.export import graphs, weights

    with eval_mode(loaded.model, 0):
        x = generate(loaded.model, draw_prior(loaded.model, EXAMPLES))
    content, config = weights(loaded)
    files, config["onnx"] = {"model.safetensors": content}, {}
    rows = [("model.safetensors", size(len(content)), "weights", "")]
    for name, (content, about) in (graphs(loaded.model, x) if onnx else {}).items():
        files[name], config["onnx"][name] = content, about
        through = f"{', '.join(about['inputs'])} -> {', '.join(about['outputs'])}"
        rows.append((name, size(len(content)), through, f"{about['max_abs_difference']:.1e}"))
    files["README.md"] = model_card(loaded, config["config"], " x ".join(map(str, x.shape[1:]))).encode()
    files["config.json"] = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    folder = reading.output_folder(loaded, output, "export")
    for name, content in files.items():  # config.json last: without it nothing loads
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    console.table("", ("file", "size", "content", "difference"), rows, left=(0, 2))
    if onnx:
        console.result(f"difference: the largest of ONNX Runtime's outputs from PyTorch's, {EXAMPLES} draws")
    console.note(f"wrote {', '.join(files)} to {folder}")
    console.json({"output": str(folder), "checkpoint": str(loaded.path), **config})
    if onnx and loaded.model.autoregressive:
        what = "decoder.onnx: not written, logits of an autoregressive decoder need the classes before each position"
        raise InputError(what, "load model.safetensors to decode; --no-onnx leaves the encoder out too")


def model_card(loaded: Loaded, table: Any, shape: str) -> str:
    """`card.md` with what the files of the run tell. `table`: settings; `shape`: of an example."""
    from arcvae_cli.commands.evaluate import show_report
    from arcvae_cli.data.corpora import corpus_name
    from arcvae_cli.render.diagnosis import printed

    model, settings, run = loaded.model, loaded.settings, loaded.run or Path()
    summary, evaluation, corpus = "not evaluated: the quality is unknown", "None.", corpus_name(settings.data)
    for path in (run / "metrics.json", run / "evaluation" / f"{corpus}-test" / "metrics.json"):
        if is_file(path) and (report := json.loads(path.read_bytes()))["epoch"] == loaded.epoch:
            summary, evaluation = report["verdict"]["summary"], printed(partial(show_report, loaded, report))
    return CARD.read_text(encoding="utf-8").format(
        name=run.name or loaded.path.stem,
        settings=settings,
        examples=f"{domains.of(model.kind).noun} ({shape})",
        version=__version__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        latents=" and ".join(f"{name} ({' x '.join(map(str, dims))})" for name, dims in model.level_shapes.items()),
        corpus=corpus,
        epoch=loaded.epoch,
        summary=summary,
        schedule=settings.schedule.describe(),
        toml=tomli_w.dumps(table).strip(),
        evaluation=evaluation,
    )
