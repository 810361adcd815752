#!/usr/bin/env bash
# The CUDA part, for a machine with a GPU: needs the tree, torch with CUDA, and what `pip install .` brings.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 bench/steps.py --device cuda --steps 200
python3 bench/steps.py --device cuda --steps 200 --batch-size 1024
python3 bench/decoding.py --device cuda
time python3 -m arcvae_cli train --preset kusner_hyperparams_enhanced_arch --data equations --epochs 5 --no-early-stopping --device cuda --run-name bench-equations
python3 -m arcvae_cli evaluate --checkpoint bench-equations --device cuda --iwae 500
time python3 -m arcvae_cli train --preset baseline --no-early-stopping --device cuda --run-name bench-baseline
python3 -m arcvae_cli evaluate --checkpoint bench-baseline --device cuda
