# make train: set up, then train on CartPole-v1.
# make test: set up, then lint, types, tests that also check shapes.   make test-fast: the tests of parts only.
# make test-slow: the wheel, the documentation, the report in a browser.
# make docs: the documentation as a site, in build/site.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CONFIG ?= configs/cartpole.yaml

.PHONY: setup train test test-fast test-slow lint docs clean

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
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --jaxtyping-packages=agent,beartype.beartype -m "not product"

test-slow: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m product

docs: setup
	$(BIN)/python -m sphinx -W --keep-going --quiet -c docs . build/site
	@echo "build/site/index.html"

test-fast: setup
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not whole_run and not product"

clean:
	rm -rf $(VENV) build docs/reference *.egg-info .pytest_cache .mypy_cache .ruff_cache
