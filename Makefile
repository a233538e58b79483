# `make help` lists what there is. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-slow conformance test-clients test-all coverage soak lint format types imports check docs clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(VENV)/user.stamp: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	@echo "Installing into $(VENV), with the tools of development (a minute or two) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/user.stamp

$(VENV)/docs.stamp: $(VENV)/user.stamp
	@echo "Installing into $(VENV), with the tools of the documentation ..."
	@$(INSTALL) -e ".[docs]"
	@touch $@

$(VENV)/clients.stamp: $(VENV)/dev.stamp
	@echo "Installing into $(VENV), with the other libraries that the tests use (a minute or two) ..."
	@$(INSTALL) -e ".[clients]"
	@touch $@

install: $(VENV)/user.stamp  ## Make .venv with what users need

install-dev: $(VENV)/dev.stamp  ## Make .venv with what contributors need, too

demo: $(VENV)/user.stamp  ## The whole job on generated data, in ./quickstart
	@OMP_NUM_THREADS=1 $(BIN)/bert-snli quickstart --output_dir quickstart --overwrite_output_dir

test: $(VENV)/dev.stamp  ## Run the quick tests, two at a time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(VENV)/dev.stamp  ## Run the other tests: killed runs, many processes, the notebook, the browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

conformance: $(VENV)/dev.stamp  ## Run the model and tokenizer tests of transformers on ours; the first run downloads them
	@$(BIN)/python -m tests.conformance.fetch
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/conformance

test-clients: $(VENV)/clients.stamp  ## Run the tests with other libraries: peft, sentence-transformers, torchao, shap, wandb, ...
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/clients

test-all: test test-slow conformance test-clients  ## Run all tests

coverage: $(VENV)/dev.stamp  ## Measure which lines and branches all tests run; takes ten minutes
	@$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

soak: $(VENV)/dev.stamp  ## Kill training runs at random moments, resume them and compare: bit-exact (five minutes)
	@$(BIN)/python -m tests.support.soak

lint: $(VENV)/dev.stamp  ## Style and likely mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/dev.stamp  ## Put the code into its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/dev.stamp  ## Check the types
	@$(BIN)/mypy

imports: $(VENV)/dev.stamp  ## Check who may import whom
	@$(BIN)/lint-imports

check: lint types imports test  ## Run the first checks of CI: lint, types, import contracts, quick tests

docs: $(VENV)/docs.stamp  ## Build the documentation site into ./site; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## Remove .venv, .cache, the site and what the demo wrote
	rm -rf $(VENV) .cache site quickstart
