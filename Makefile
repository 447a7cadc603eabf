# make train: set up, then train on CartPole-v1.
# make test: set up, then lint, types, tests that also check shapes.   make test-fast: the tests of parts only.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONFIG ?= configs/cartpole.yaml

.PHONY: setup train test test-fast lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; say which: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

train: setup
	$(BIN)/python train.py $(CONFIG) $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --jaxtyping-packages=agent,beartype.beartype

test-fast: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not whole_run"

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
