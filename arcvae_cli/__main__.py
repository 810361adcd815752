"""`python -m arcvae_cli`."""

from arcvae_cli.cli import main

main()
