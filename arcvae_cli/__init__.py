"""arcvae: variational autoencoders on discrete structures, trained without losing them to posterior collapse.

The names in `__all__` are for use from Python (docs/python.md); each is imported when it is first used.
"""

import time
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["ArcvaeError", "InputError", "Model", "Run", "diagnose", "load", "runs", "schedules", "train"]

BEGAN = time.perf_counter()
"""When a command began, by this clock: this module is the first that it loads."""

if TYPE_CHECKING:
    from arcvae_cli import schedules
    from arcvae_cli.api import Model, Run, load, runs, train
    from arcvae_cli.errors import ArcvaeError, InputError
    from arcvae_cli.evaluation.diagnose import diagnose
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        if name == "schedules":
            return import_module("arcvae_cli.schedules")
        places = {"diagnose": "evaluation.diagnose", "ArcvaeError": "errors", "InputError": "errors"}
        return getattr(import_module(f"arcvae_cli.{places.get(name, 'api')}"), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
