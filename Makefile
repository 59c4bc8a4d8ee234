# The commands to remember. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv sweep tables tables-check test test-slow test-scale test-versions lint-kernels test-engines test-all check format golden clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"error: Python 3.11 or later is needed, {sys.executable} is {v[0]}.{v[1]}\nhint: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

venv: $(STAMP) ## install everything into .venv

sweep: $(STAMP) ## the main job: tune the quickstart, write tuned_tables/
	$(BIN)/rpa-tune sweep sweeps/quickstart.yaml

# Plan, and further options of `rpa-tune sweep`: FLAGS="--shard 1/8", FLAGS="--executor ray".
TABLES_PLAN = sweeps/fleet.yaml
SAMPLE = 10

tables: $(STAMP) ## tune all tables that ship, largest use first; stop it at any time, it resumes
	$(BIN)/rpa-tune sweep $(TABLES_PLAN) --workers $(JOBS) $(FLAGS)

tables-check: $(STAMP) ## lint all shipped rows, and compile SAMPLE of them again
	$(BIN)/rpa-tune tables lint tuned_tables
	$(BIN)/rpa-tune tables check tuned_tables --recompile --sample $(SAMPLE) --plan $(TABLES_PLAN) --workers $(JOBS) $(FLAGS)

test: $(STAMP) ## the default tests: 12 minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow and not tpu and not scale'

test-slow: $(STAMP) ## the slower checks: wide kernel spaces, every chip
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'slow and not tpu and not scale'

test-scale: $(STAMP) ## a sweep's tasks on a local Ray cluster; installs the extra
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[ray]'
	$(BIN)/python -m pytest -n 0 -m scale

test-versions: $(STAMP) ## compile for every chip with each pair of jax and libtpu; stop it at any time, it resumes
	$(BIN)/python tests/versions/run.py --workers $(JOBS) $(VERSIONS)

lint-kernels: $(STAMP) ## the compiler's own linter on every shipped config; keeps an environment with libtpu 0.0.52
	$(BIN)/python tests/versions/run.py --lint --workers $(JOBS) $(VERSIONS)

# jax, torch and all else as vLLM on TPU has them, which this project's own environment has not.
ENGINES = .venv-engines
ENGINES_STAMP = $(ENGINES)/.installed
ENGINES_PIP = $(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps

$(ENGINES_STAMP): tests/engines/requirements.txt pyproject.toml
	"$$($(PYTHON) tests/versions/interpreter.py 3.12)" -m venv $(ENGINES)
	$(ENGINES_PIP) -r tests/engines/requirements.txt
	$(ENGINES_PIP) -e .
	@touch $(ENGINES_STAMP)

test-engines: $(ENGINES_STAMP) ## whole engines on a CPU, in an environment of their own: Python 3.12, 10 GB
	CI=1 $(ENGINES)/bin/python -m pytest -c tests/engines/pytest.ini tests/engines

check: $(STAMP) ## formatter, linter, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_packaging.py

golden: $(STAMP) ## simulate the golden dumps again and rewrite their timelines; review the diff
	$(BIN)/python tests/golden/make.py timelines

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets made, tables and results excepted
	rm -rf $(VENV) $(ENGINES) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
