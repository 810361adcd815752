"""arcvae: variational autoencoders on discrete structures, trained without losing them to posterior collapse."""

import time

__version__ = "0.1.0"

BEGAN = time.perf_counter()
"""When a command began, by this clock: this module is the first that it loads."""
