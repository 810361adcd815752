# `make` lists the tasks. Everything runs in .venv, which the first task that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
INSTALL = echo "installing into $(VENV), about a minute"; \
	$(BIN)/python -m pip install --editable '.[$(EXTRAS)]' \
	| awk '/^ *(Collecting|Downloading|Installing)/ {printf "."; fflush()} /^Successfully installed/ {print NF - 2 " packages"}'

# without what they need themselves, which is there already: they run on the very same torch
LIBRARIES = pythae==0.1.2 cloudpickle imageio tqdm lightning==2.6.6 torchmetrics lightning-utilities

.DEFAULT_GOAL := help
.PHONY: help train test callbacks check lint types format docs stale bench same soak fuzz slurm clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(VENV)/.run ## train the quickstart preset on real ARC grids: a few minutes on two CPU cores
	$(BIN)/arcvae train --preset quickstart

test: $(VENV)/.dev ## run the tests, on all cores
	$(BIN)/pytest --numprocesses auto --dist loadfile

callbacks: $(VENV)/.dev ## test the callbacks of examples/ in pythae and Lightning, which go into build/callbacks
	@test -d build/callbacks || $(BIN)/python -m pip install --quiet --no-deps --target build/callbacks $(LIBRARIES)
	PYTHONPATH=build/callbacks $(BIN)/pytest tests/evaluation/test_diagnose.py -k 'lightning or pythae'

check: lint types test stale ## lint, types, tests and the output shown in the docs

lint: $(VENV)/.dev ## ruff: layout and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## rewrite the output shown in README.md and docs
	$(BIN)/python docs/build.py

stale: $(VENV)/.dev ## compare the output shown in README.md and docs with the program's
	$(BIN)/python docs/build.py --check

bench: $(VENV)/.dev ## benchmarks on this machine's CPU in under ten minutes, each printing a ratio
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/steps.py --threads 1
	$(BIN)/python bench/steps.py --name steps-threads
	$(BIN)/python bench/whole.py
	$(BIN)/python bench/ceilings.py --threads 1
	$(BIN)/python bench/remains.py --threads 1
	$(BIN)/python bench/scaling.py
	$(BIN)/python bench/engines.py
	$(BIN)/python bench/decoding.py
	$(BIN)/python -m pip install --quiet nltk
	$(BIN)/python bench/parsing.py

same: $(VENV)/.dev ## compare weights, metrics and JSON with those recorded in bench/golden, bit for bit
	$(BIN)/python bench/same.py

soak: $(VENV)/.dev ## kill, stop and starve real runs, hundreds of times: half an hour on two cores (Linux)
	$(BIN)/python bench/soak.py

fuzz: $(VENV)/.dev ## hostile presets, --set, corpora and checkpoints, a thousand of each kind, others every time
	FUZZ=1000 $(BIN)/pytest --numprocesses auto tests/test_hostile.py -k fuzz

slurm: $(VENV)/.dev ## run a sweep through a real Slurm of one node, which it starts (root, Debian's packages): some minutes
	PYTHON=$(BIN)/python timeout 1200 tests/slurm/run.sh

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist

$(VENV)/.run: EXTRAS = wandb,tensorboard
$(VENV)/.run: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL)
	@touch $@

$(VENV)/.dev: EXTRAS = dev
$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL)
	@touch $@ $(VENV)/.run
