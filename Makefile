# The first target that needs the environment creates it; it is updated when pyproject.toml or
# requirements.lock change. Override variables on the command line: make test PYTEST_ARGS="-k vocabulary"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# set in CI: fail below this percentage of covered lines
COVERAGE ?=
PYTEST_ARGS ?=
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := odise_pl tests scripts $(wildcard *.py)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train evaluate demo lint format test docs pictures nightly lock clean distclean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make the environment in .venv (other targets do so if needed)

train: $(STAMP)  ## Run train.py, options in ARGS: make train ARGS="trainer.devices=8"
	$(BIN)/python train.py $(ARGS)

evaluate: $(STAMP)  ## Run evaluate.py: make evaluate ARGS="ckpt=PATH data=NAME"
	$(BIN)/python evaluate.py $(ARGS)

demo: $(STAMP)  ## Paint a small world, train on it, evaluate and draw pictures, in minutes and offline
	$(BIN)/odise demo $(ARGS)

lint: $(STAMP)  ## Check style, types and the layers
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy odise_pl tests/parity scripts $(wildcard *.py)
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

test: $(STAMP)  ## Run the tests; options of pytest in PYTEST_ARGS: make test PYTEST_ARGS="--slow"
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder \
		$(if $(COVERAGE),--cov --cov-fail-under=$(COVERAGE)) $(PYTEST_ARGS)

docs: $(STAMP)  ## Build the documentation in build/docs, offline; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pictures: $(STAMP)  ## Draw the pictures of the documentation from the demo's run; needs Chromium
	$(BIN)/python -m scripts.docs.pictures $(ARGS)

nightly: $(STAMP)  ## Run the long tests: trainings, kills, several machines, full size, notebook, an installed wheel
	$(BIN)/python -m pytest --slow -m slow $(PYTEST_ARGS)

lock: $(STAMP)  ## Update requirements.lock from pyproject.toml, keeping pins that still fit
	$(BIN)/uv pip compile pyproject.toml --extra dev --output-file requirements.lock --quiet \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--no-header --no-annotate --no-emit-index-url

clean:  ## Remove caches and build products
	rm -rf build dist htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment too
	rm -rf $(VENV)

# The pip of $(PYTHON) installs uv, for systems whose Python has no ensurepip.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	test -x $(BIN)/uv || $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check uv
	# compiled here once: programs would compile their libraries at every start where PYTHONDONTWRITEBYTECODE is set
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --requirements requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@
