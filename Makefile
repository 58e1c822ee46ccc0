# Every target works from a fresh clone with no virtual environment active.
#
#   make demo       a three-node cluster on this machine, through two leader kills
#   make test       lint, types and every test; what a release is decided by
#   make help       the other targets

SHELL := /bin/sh
.DEFAULT_GOAL := help

# The environment is the project's own: nothing of an active one leaks in. Without bytecode files
# each of the many processes of a test run would compile all modules again.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PYTHONOPTIMIZE PYTHONSTARTUP
unexport PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.lock
BUILD_LOCK := requirements/build.lock
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	--no-header --python-version 3.11 $(if $(UPGRADE),--upgrade)

# Worker processes of pytest, and seeds a campaign tries for each simulation.
JOBS ?= 2
SEEDS ?= 200
FIRST_SEED ?= 0
# Steps of groups in one seed of `make simulate`, before it heals.
STEPS ?= 4000

.PHONY: help
help:
	@sed -n 's/^## //p' Makefile

## make venv         create .venv and install the locked dependencies, checked by hash
.PHONY: venv
venv: $(STAMP)

# pip changes the environment only here, so one stamp says that it is as the lock wants it.
$(STAMP): $(LOCK) $(BUILD_LOCK) pyproject.toml deploy/system-packages.sh
	@PYTHON="$$(sh deploy/system-packages.sh build)" && \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "== creating $(VENV) with $$PYTHON"; \
		rm -rf $(VENV) && "$$PYTHON" -m venv $(VENV); \
	fi
	@echo "== installing $(LOCK)"
	@$(PIP_INSTALL) --require-hashes --only-binary :all: -r $(BUILD_LOCK)
	@$(PIP_INSTALL) --require-hashes --no-build-isolation --use-pep517 -r $(LOCK)
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

## make test         lint, types and every test
.PHONY: test
test: lint types
	@echo "== tests: $(JOBS) workers; what is skipped is listed at the end with its reason"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

## make test-unit    the unit tests alone
.PHONY: test-unit
test-unit: venv
	@$(BIN)/python -m pytest tests/unit

## make lint         ruff: rules and format
.PHONY: lint
lint: venv
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
## make format       let ruff fix and format what it can
format: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

## make types        mypy --strict
.PHONY: types
types: venv
	@echo "== types"
	@$(BIN)/mypy

## make demo         publish through two leader kills on a three-node cluster, then leave it running
.PHONY: demo
demo: venv
	@$(BIN)/python -m nokv.testing.demo

## make demo-down    stop the demo's cluster and remove its files
.PHONY: demo-down
demo-down: venv
	@$(BIN)/python -m nokv.testing.demo --down

## make bench        speed tables and JSON in bench/results
.PHONY: bench
bench: venv
	@sh deploy/system-packages.sh bench >/dev/null
	@$(BIN)/python -m bench

## make campaign     simulations over many seeds, the image of 2 GiB: SEEDS=200 FIRST_SEED=0
.PHONY: campaign
campaign: venv
	@$(BIN)/python -m pytest tests/simulation -n $(JOBS) --dist worksteal --timeout 0 \
		--hypothesis-profile campaign --seeds $(SEEDS) --first-seed $(FIRST_SEED)
	@$(BIN)/python -m tests.cluster.image_memory --mib 2048
	@$(BIN)/python -m tests.cluster.image_transfer --mib 2048
	@$(BIN)/python -m tests.exhaustive --core --depth 5
	@$(BIN)/python -m tests.exhaustive --reduce --depth 4

## make mutate       switch off each guard of replication; the tests must notice (not in make test)
.PHONY: mutate
mutate: venv
	@$(BIN)/python -m tests.mutations

## make simulate     replication alone, many seeds: SEEDS=200 FIRST_SEED=0 STEPS=4000 TOTALS=file
.PHONY: simulate
simulate: venv
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(FIRST_SEED) --steps $(STEPS) \
		--jobs $(JOBS) $(if $(TOTALS),--totals $(TOTALS))

## make lock         resolve the lock again from pyproject.toml (UPGRADE=1 takes newer versions)
.PHONY: lock
lock: venv
	@$(UV_COMPILE) --extra server --extra dev --output-file $(LOCK) pyproject.toml
	@$(UV_COMPILE) --constraints $(LOCK) --output-file $(BUILD_LOCK) requirements/build.in

## make clean        remove what the targets above made
.PHONY: clean
clean:
	rm -rf $(VENV) build dist .demo .mypy_cache .ruff_cache .hypothesis .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
