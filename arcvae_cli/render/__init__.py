"""Grids, strings and KL bars in the terminal; grids, curves and latent codes as PNG. Takes NumPy arrays and numbers."""

from arcvae_cli.render.plots import (
    grid_pixels,
    kl_map_pixels,
    reconstruction_pixels,
    save_beta_schedule,
    save_grids,
    save_kl_heatmap,
    save_kl_maps,
    save_latent_scatter,
    save_level_samples,
    save_path,
    save_reconstructions,
)
from arcvae_cli.render.terminal import PALETTE, TerminalGrids, TerminalStrings, kl_bars, path_strip

__all__ = [
    "PALETTE",
    "TerminalGrids",
    "TerminalStrings",
    "grid_pixels",
    "kl_bars",
    "kl_map_pixels",
    "path_strip",
    "reconstruction_pixels",
    "save_beta_schedule",
    "save_grids",
    "save_kl_heatmap",
    "save_kl_maps",
    "save_latent_scatter",
    "save_level_samples",
    "save_path",
    "save_reconstructions",
]
