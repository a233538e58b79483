# `make help` lists what there is. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Variables of `make release-model`: make release-model SNLI=snli_1.0.zip REPO_ID=user/name
# BASE is what `bert-snli convert` accepts, or a converted model folder.
BASE ?= bert.small
CONVERT_OPTIONS ?=
SNLI ?= stanfordnlp/snli
RECIPE ?= default
RELEASE_DIR ?= release
REPO_ID ?= user/name
TRAINED_WITH := BASE=$(BASE) CONVERT_OPTIONS="$(CONVERT_OPTIONS)" SNLI=$(SNLI) RECIPE=$(RECIPE)
VARIABLES := $(RELEASE_DIR)/variables.txt
CONVERTED := $(RELEASE_DIR)/converted
MODEL := $(RELEASE_DIR)/model
STAGED := $(RELEASE_DIR)/staged/$(REPO_ID)

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-slow conformance test-clients test-all coverage soak lint format types \
	imports check docs dist release-model release-variables clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

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

$(VENV)/dist.stamp: constraints.txt
	@echo "Installing the tools that build packages into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) build twine
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

dist: $(VENV)/dist.stamp  ## Build the source distribution and the wheel into ./dist, and check them
	@rm -rf dist
	@$(BIN)/python -m build --quiet
	@$(BIN)/python -m twine check --strict dist/*

release-model: $(STAGED)/README.md  ## Train the released model and stage its upload in ./release; continues where it stopped
	@echo "$(STAGED) is complete. Upload it after \`hf auth login\` with:"
	@echo "  $(BIN)/bert-snli push $(STAGED) --repo_id $(REPO_ID)"

# Refuses to continue an earlier call with other variables. REPO_ID may change.
release-variables:
	@mkdir -p $(RELEASE_DIR)
	@[ -e $(VARIABLES) ] || echo '$(TRAINED_WITH)' > $(VARIABLES)
	@echo '$(TRAINED_WITH)' | cmp -s - $(VARIABLES) || { echo >&2 \
		"$(RELEASE_DIR): belongs to $$(cat $(VARIABLES)); give these, give another RELEASE_DIR, or delete it"; exit 2; }

$(CONVERTED)/conversion_certificate.json: | release-variables $(VENV)/dev.stamp
	@if [ -e $(BASE)/conversion_certificate.json ]; then \
		$(BIN)/bert-snli verify $(BASE) && mkdir -p $(CONVERTED) && cp $(BASE)/*.* $(CONVERTED); \
	else \
		$(BIN)/bert-snli convert $(BASE) --output_dir $(CONVERTED) $(CONVERT_OPTIONS); \
	fi

$(MODEL)/train_results.json: $(CONVERTED)/conversion_certificate.json
	@$(BIN)/bert-snli finetune $(CONVERTED) --config $(RECIPE) --dataset_name_or_path $(SNLI) --output_dir $(MODEL) \
		--save_steps 200 --resume_from_checkpoint auto

$(MODEL)/report/report.md: $(MODEL)/train_results.json
	@$(BIN)/bert-snli evaluate $(MODEL) --dataset_name_or_path $(SNLI) --report $(MODEL)/report

$(MODEL)/onnx/model.onnx: $(MODEL)/train_results.json
	@$(BIN)/bert-snli export $(MODEL) --format onnx --output_dir $(@D) --overwrite_output_dir

$(MODEL)/onnx/model_int8.onnx: $(MODEL)/onnx/model.onnx
	@$(BIN)/bert-snli export $(MODEL) --format onnx --quantize int8 --output_dir $(RELEASE_DIR)/int8 --overwrite_output_dir
	@cp $(RELEASE_DIR)/int8/model.onnx $@

# Staging ends with a check: a process that cannot import this package loads the staged folder and runs it.
$(STAGED)/README.md: $(MODEL)/report/report.md $(MODEL)/onnx/model_int8.onnx
	@rm -rf $(STAGED)
	@$(BIN)/bert-snli push $(MODEL) --repo_id $(REPO_ID) --dry_run --output_dir $(STAGED)
	@HF_HUB_OFFLINE=1 $(BIN)/python -I -c "import sys; sys.modules.update(bert_snli=None, conversion=None); \
		from transformers import pipeline; nli = pipeline('natural-language-inference', '$(STAGED)', trust_remote_code=True); \
		print(nli(('A man inspects a uniform.', 'The man is sleeping.')))"

clean:  ## Remove .venv, .cache, the site, ./dist and what the demo wrote
	rm -rf $(VENV) .cache site dist quickstart
