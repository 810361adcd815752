"""Grids, strings and KL bars in the terminal; grids, curves and latent codes as PNG. Takes arrays and numbers."""
