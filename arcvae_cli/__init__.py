"""arcvae: variational autoencoders on discrete structures, trained without losing them to posterior collapse."""

__version__ = "0.1.0"
