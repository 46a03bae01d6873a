# Each target creates and fills its own .venv when it is missing, or when pyproject.toml has changed since.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_PEERS := $(VENV)/.ready-peers

.PHONY: demo test parity peers lint format bench clean

demo: $(READY)  ## train, evaluate and report on the emoji set
	@$(BIN)/python -m experiments.emoji_chat

test: $(READY)  ## all tests, WORKERS processes at a time
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/parity tests

parity: $(READY_PEERS)  ## outputs and gradients of small models are those of transformers with the same weights
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/parity

lint: $(READY)  ## style, imports and formatting; changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY)  ## what lint asks for, done
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY_PEERS)  ## ratios against PyTorch and against limits, side by side in one run
	@$(BIN)/python -m benchmarks

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mmjax needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "== creating $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "== installing mmjax and what it needs into $(VENV) (once; some minutes, about 2 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

peers: $(READY_PEERS)  ## PyTorch and transformers, for parity and bench

$(READY_PEERS): $(READY)
	@echo "== installing PyTorch and transformers, the peers to compare with, into $(VENV) (large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,peers]'
	@touch $@

clean:  ## removes the environment and every cache in this folder; runs/ stays
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist
