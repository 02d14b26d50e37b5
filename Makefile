# `make demo` and `make test` are all a newcomer needs: each makes $(VENV) first if it has to.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests start Ray clusters of their own: a worker needs some 2 GB of memory.
TEST_WORKERS ?= 2

.PHONY: help install demo test lint ends bench ui

help:
	@echo 'make demo   run sweeps/quickstart.yaml and print its table'
	@echo 'make test   run the tests'
	@echo 'make lint   ruff, mypy and the import rules'
	@echo 'make ends   test the lowest and the newest versions that pyproject.toml allows (downloads much)'
	@echo 'make bench  measure speed and memory on this machine; BENCH="--help" lists the options'
	@echo 'make ui     open the dashboard of what `make demo` recorded'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV) (a few minutes the first time)'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/orchestrator run sweeps/quickstart.yaml --storage outputs

test: $(INSTALLED)
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

ends:
	PYTHON=$(PYTHON) .ci/ends lowest newest

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks $(BENCH)

ui: $(INSTALLED)
	$(BIN)/orchestrator ui --storage outputs
