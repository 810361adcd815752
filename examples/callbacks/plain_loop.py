"""A plain PyTorch loop that prints the diagnosis of its VAE after each epoch: `python plain_loop.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from arcvae_cli.evaluation.diagnose import Diagnosis, diagnose


@torch.no_grad()
def print_diagnosis(epoch, encode, x, **training) -> Diagnosis:
    """`encode(x)` gives mean and logvar (N, D); `training`: beta, reduction, positions, ... as diagnose takes them."""
    found = diagnose(*encode(x), **training)
    print(f"epoch {epoch}\n{found}\n")
    return found


def main(epochs: int = 5, beta: float = 0.03, latent_dim: int = 16) -> Diagnosis:
    """A VAE of 8x8 digits whose loss is a mean over 64 pixels: beta weighs 64 times as much on the ELBO scale."""
    torch.manual_seed(0)
    x = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    train, val = x[:1500], x[1500:]
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, 64))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3)
    for epoch in range(1, epochs + 1):
        for batch in train[torch.randperm(len(train))].split(50):
            mean, logvar = encoder(batch).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            reconstruction = functional.binary_cross_entropy_with_logits(decoder(z), batch)
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=1).mean()
            adam.zero_grad()
            (reconstruction + beta * kl).backward()
            adam.step()
        found = print_diagnosis(epoch, lambda x: encoder(x).chunk(2, 1), val, beta=beta, reduction="mean", positions=64)
    return found


if __name__ == "__main__":
    main()
