# bigopt: `make help` lists what there is. Every target sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Bytecode is kept, whatever the shell says: the tests start hundreds of processes that import bigopt.
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
PY := $(BIN)/python
CONF ?= conf/flights.yml
BACKEND ?= local
ARGS ?=
TWO := -n 2 --dist loadfile --no-loadscope-reorder
ROWS ?=

.PHONY: help setup s3 run pipeline study studies test test-fast test-all bench bench-quick lint format check lock clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: ## .venv with everything a CPU user needs (and CuPy where there is a card); Java for Spark
	@tools/setup.sh

s3: setup ## a local server that speaks S3, for test-all, in an environment of its own
	@test -x .venv-s3/bin/moto_server || { $(PY) -m venv .venv-s3 && \
		.venv-s3/bin/python -m pip --disable-pip-version-check --quiet install 'moto[s3,server]==5.2.5'; }

run: setup ## the whole way on real data: fetch the flights, ingest, train, evaluate, show result and pictures
	@$(PY) tools/demo.py conf/flights.yml

pipeline: setup ## the same for CONF=conf/NAME.yml on BACKEND=local|dask|spark, with ARGS='key=value ...'
	@$(PY) tools/demo.py "$(CONF)" --backend "$(BACKEND)" $(ARGS)

study: setup ## a study to a picture and tables: NAME=example_4_1 (no NAME lists them), with ARGS='key=value ...'
	@$(PY) pipelines/study.py $(NAME) $(ARGS)

studies: setup ## all examples and case studies
	@$(PY) pipelines/study.py --all $(ARGS)

test: setup ## all tests but the long fault, memory and peer runs, two at a time
	@$(PY) -m pytest $(TWO) -m "not all" $(ARGS)

test-fast: setup ## the tests that start no engine, train no whole run and compile nothing, two at a time
	@$(PY) -m pytest $(TWO) -m "not all and not slow" $(ARGS)

test-all: setup s3 ## every test
	@$(PY) -m pytest $(ARGS)

bench: setup ## bigopt beside its peers and the limits of this machine (sized for 25 minutes); ROWS='mlp adam' for some
	@benchmarks/setup.sh
	@$(PY) -m benchmarks $(ROWS) $(ARGS)

bench-quick: setup ## small sizes, 3 rounds, 7 of the 13 rows (sized for 4 minutes)
	@benchmarks/setup.sh
	@$(PY) -m benchmarks --quick $(ROWS) $(ARGS)

lint: setup ## ruff, mypy --strict, the layers
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@PYTHONPATH=. $(BIN)/lint-imports

format: setup ## put the code into the house's format
	@$(PY) -m ruff check --fix --select I .
	@$(PY) -m ruff format .

check: lint test ## lint and test

lock: setup ## resolve constraints.txt anew
	@$(PY) -m pip --disable-pip-version-check --quiet install uv
	@$(PY) -m uv pip compile --quiet --universal --python-version 3.11 pyproject.toml \
		$$($(PY) -c "import tomllib; print(*('--extra ' + e for e in \
		tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies'] if e != 'bench'))") \
		--no-header --no-annotate --upgrade -o constraints.txt
	@if grep -n '://' constraints.txt; then echo 'constraints.txt must not hold addresses' >&2; exit 1; fi

clean: ## remove what tools left behind (not .venv, not data)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.coverage htmlcov spark-warehouse metastore_db derby.log dask-worker-space dask-scratch-space
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
