"""`arcvae export`: the model of a run as files that travel, with a model card from the run's own numbers."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
import typer

from arcvae_cli import __version__, domains
from arcvae_cli.commands import reading
from arcvae_cli.commands.options import JsonOption, QuietOption, complete_runs
from arcvae_cli.console import Console, cell
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, is_file, read_lines, size
from arcvae_cli.folders import read_status
from arcvae_cli.settings import elbo_scale

if TYPE_CHECKING:
    from arcvae_cli.checkpoints import Loaded

EXAMPLES = 64  # that ONNX graphs are compared on
CARD = Path(__file__).with_name("card.md")
INSTALL = "pip install 'arcvae[export]'"
RunArgument = Annotated[str, typer.Argument(help=reading.CHECKPOINT, autocompletion=complete_runs)]
OnnxOption = Annotated[bool | None, typer.Option("--onnx/--no-onnx", help="ONNX files", show_default="if installed")]


def export(
    run: RunArgument = "latest",
    onnx: OnnxOption = None,
    runs_dir: reading.RunsOption = Path("runs"),
    output: reading.OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the weights as safetensors, ONNX files that are compared with the model, and a model card."""
    console = Console(quiet=quiet, as_json=as_json)
    missing = [name for name in ("safetensors", "onnx", "onnxruntime") if find_spec(name) is None]
    if "safetensors" in missing or (onnx and "onnx" in missing):
        raise InputError(f"arcvae export: {missing[0]} is not installed", INSTALL)
    if output is not None and (there := next(output.glob("[!.]*"), None)):
        raise InputError(f"--output {output}: has a {there.name} already", "choose an empty folder")
    loaded = reading.open_checkpoint(run, runs_dir, "cpu", console)
    from arcvae_cli.export import OPSET, graphs, to_onnx, weights

    x, source, corpus = examples(loaded, console)
    content, config = weights(loaded)
    files, config["onnx"], failed = {"model.safetensors": content}, {}, ""
    rows = [("model.safetensors", size(len(content)), "weights", "")]
    if onnx is not False and missing:
        told = "no ONNX files: onnx" if "onnx" in missing else "the ONNX files are not checked: onnxruntime"
        console.note(f"{told} is not installed; {INSTALL}")
    for name, graph in ({} if onnx is False or "onnx" in missing else graphs(loaded.model, x)).items():
        try:
            files[name], difference = to_onnx(graph, check=not missing)
        except ArcvaeError as error:
            failed = f"{name} is not written: {error.what}"
            console.warn(failed)
            continue
        config["onnx"][name] = {"opset": OPSET, "max_abs_difference": difference}
        through = f"{', '.join(graph.inputs)} -> {', '.join(graph.outputs)}"
        through += ", no conditions" * bool(loaded.model.attributes)
        rows.append((name, size(len(files[name])), through, cell(difference, ".1e")))

    def listed(console: Console) -> None:
        console.table("", ("file", "size", "content", "difference"), rows, left=(0, 2))
        if config["onnx"]:
            console.result(f"difference: the largest of ONNX Runtime's outputs from PyTorch's, {source}")

    config["files"] = {name: {"bytes": len(one), "sha256": sha256(one).hexdigest()} for name, one in files.items()}
    files["README.md"] = model_card(loaded, corpus, config["config"], x.shape[1:], printed(listed)).encode()
    files["config.json"] = (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    folder = reading.output_folder(loaded, output, "export")
    for name, content in files.items():  # config.json last: without it nothing loads
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    listed(console)
    console.note(f"wrote {', '.join(files)} to {folder}")
    console.json({"output": str(folder), "checkpoint": str(loaded.path), **config})
    if failed and onnx:
        raise ArcvaeError(failed)


def examples(loaded: Loaded, console: Console) -> tuple[Any, str, Any]:
    """Examples (n, *positions), what they are, and the corpus; drawn from the model if that has to be built."""
    import torch

    from arcvae_cli.evaluation.information import eval_mode
    from arcvae_cli.evaluation.priors import argmax_decode, draw_prior

    noun = domains.of(loaded.model.kind).noun
    if not reading.unbuilt(loaded.settings.data):
        with suppress(InputError):
            corpus = reading.open_examples(loaded, None, "train", console)
            split = "test" if corpus.size("test") else "train"
            chosen = torch.arange(min(EXAMPLES, corpus.size(split)))
            return corpus.batch(split, chosen).x, f"{len(chosen)} {split} {noun} of {corpus.name}", corpus
    with eval_mode(loaded.model, 0):
        x = argmax_decode(loaded.model, draw_prior(loaded.model, EXAMPLES))
    return x, f"{EXAMPLES} {noun} drawn from the model", None


def model_card(loaded: Loaded, corpus: Any, table: Any, shape: Sequence[int], files: str) -> str:
    """`card.md` with what the files of the run tell. `table`: settings; `shape`: of an example."""
    from arcvae_cli.commands.evaluate import show_report
    from arcvae_cli.data.corpora import corpus_name

    model, settings, run = loaded.model, loaded.settings, loaded.run or Path()
    noun, status, trained_on = domains.of(model.kind).noun, read_status(run), corpus_name(settings.data)
    data = [f"Corpus `{trained_on}`"]
    if corpus is not None:
        sizes = ", ".join(f"{corpus.size(split):,} {split}" for split in ("train", "val", "test"))
        by_task = settings.data.path is None and trained_on.startswith("arc")
        data += [f"{sizes} {noun}", *["split by ARC task"] * by_task, *corpus.notes]
    log = read_lines(run / "metrics.jsonl") if is_file(run / "metrics.jsonl") else []
    line = next((line for line in log if (line["kind"], line["epoch"]) == ("epoch", loaded.epoch)), {})
    told, scale = list[str](), elbo_scale(settings, math.prod(shape))
    for key in (key for key in line if key.startswith("train/beta")):
        told.append(f"{key[6:]} {line[key]:.4g}{f' ({line[key] * scale:.4g} on the ELBO scale)' if scale else ''}")
    summary, evaluation = "not evaluated: the quality is unknown", "None."
    for path in (run / "metrics.json", run / "evaluation" / f"{trained_on}-test" / "metrics.json"):
        if is_file(path) and (report := json.loads(path.read_bytes()))["epoch"] == loaded.epoch:
            summary, evaluation = report["verdict"]["summary"], "The report is of another version of arcvae."
            with suppress(LookupError):  # of names that have changed since
                evaluation = printed(partial(show_report, loaded, report))
    return CARD.read_text(encoding="utf-8").format(
        name=run.name or loaded.path.stem,
        noun=f"{noun} ({' x '.join(map(str, shape))})",
        version=__version__,
        settings=settings,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        latents=" and ".join(f"{name} ({' x '.join(map(str, dims))})" for name, dims in model.level_shapes.items()),
        epoch=loaded.epoch,
        state="" if status is None else "; run {state}, at epoch {epoch} of {epochs}".format(**status),
        summary=summary,
        data="; ".join(data),
        schedule=settings.schedule.describe(),
        betas=", ".join(told[1:] or told) or "unknown",
        toml=tomli_w.dumps(table).strip(),
        evaluation=evaluation,
        files=files,
    )


def printed(show: Callable[[Console], None]) -> str:
    """What a function prints on a console, as plain text."""
    from rich.console import Console as Terminal

    console, text = Console(), io.StringIO()
    console.out = Terminal(file=text, width=120, color_system=None)
    show(console)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
