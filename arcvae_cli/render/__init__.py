"""Grids, strings and KL bars in the terminal; grids, curves and latent codes as PNG. Takes NumPy arrays and numbers."""

from arcvae_cli.render.plots import (
    example_sheets,
    save_beta_schedule,
    save_grids,
    save_kl_heatmap,
    save_kl_maps,
    save_latent_scatter,
    save_level_samples,
    save_reconstructions,
)
from arcvae_cli.render.terminal import TerminalGrids, TerminalStrings, kl_bars, path_strip

__all__ = ["TerminalGrids", "TerminalStrings", "example_sheets", "kl_bars", "path_strip", "save_beta_schedule"]
__all__ += ["save_grids", "save_kl_heatmap", "save_kl_maps", "save_latent_scatter", "save_level_samples"]
__all__ += ["save_reconstructions"]
