# Every target that runs Python sets .venv up first, once. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ENV := phantom
ARGS :=
# An interpreter of your own choice; otherwise the first of these that is recent enough.
PYTHON ?=
# An index with CPU builds of torch, asked where there is no GPU; empty: only pip's own configuration counts.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)
PY := .venv/bin/python
READY := .venv/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup train test bench proof methods mitigations tables transfer transfers compare lint format typecheck check wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## create .venv with everything, from nothing; again only when the dependencies change

# torch comes first and alone. The CPU index is an extra one: its "2.13.0+cpu" sorts above PyPI's "2.13.0", on Linux a CUDA
# build of several GB, and where it cannot be reached pip goes on with its own configuration after one retry.
$(READY): pyproject.toml constraints.txt
	@test -x $(PY) || { \
	  for python in $(PYTHONS); do \
	    "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    exec "$$python" -m venv --clear .venv; \
	  done; \
	  echo "error: none of $(PYTHONS) is Python 3.11 or newer with venv — install one, or make setup PYTHON=<path>" >&2; \
	  exit 2; \
	}
	@nvidia-smi -L >/dev/null 2>&1 && index= || index="$(TORCH_INDEX)"; set -x; \
	$(PY) -m pip install --no-deps --retries 1 --constraint constraints.txt $${index:+--extra-index-url "$$index"} torch
	$(PY) -m pip install --constraint constraints.txt 'setuptools>=77'
	$(PY) -m pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

train: $(READY)  ## learn what to fine-tune: make train [ENV=phantom] [ARGS="key=value ..."]
	$(PY) -m agents.train env=$(ENV) $(ARGS)

# A file's tests stay together, for they share what is dear to set up.
test: $(READY)  ## the whole test suite; a part of it: make test ARGS="tests/rewards -m 'not slow'"
	$(PY) -m pytest --numprocesses 2 --dist loadfile $(ARGS)

bench: $(READY)  ## the benchmarks; writes runs/bench/<name>.json
	$(PY) -m agents.bench $(ARGS)

proof: $(READY)  ## prove the measurements on real images; writes docs/measurements.md
	$(PY) -m agents.validate $(ARGS)

methods: $(READY)  ## compare every adaptation method on real images; writes docs/methods.md
	$(PY) -m agents.methods $(ARGS)

mitigations: $(READY)  ## compare mitigations, alone and on top of a mask; writes docs/mitigations.md
	$(PY) -m agents.mitigations $(ARGS)

tables: $(READY)  ## draw every shipped table's landscape; writes docs/tables.md
	$(PY) -m agents.tables $(ARGS)

transfer: $(READY)  ## let what was learned on SRC choose on DST: make transfer SRC=<run or env>[,...] DST=<env> [ARGS=...]
	$(PY) -m agents.transfer src=$(SRC) dst=$(DST) $(ARGS)

transfers: $(READY)  ## finished transfers on one page; writes docs/transfers.md
	$(PY) -m agents.transfers $(ARGS)

compare: $(READY)  ## searchers against each other, on each data source in turn or ENV alone; writes docs/comparison.md
	$(PY) -m agents.compare $(if $(filter file,$(origin ENV)),,env=$(ENV)) $(ARGS)

lint: $(READY)  ## style, formatting, and which package may import which
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	.venv/bin/lint-imports --no-logo

format: $(READY)  ## rewrite the files as `make lint` wants them
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

typecheck: $(READY)  ## mypy --strict, tests included
	$(PY) -m mypy

check: lint typecheck  ## what has to hold before a commit, beside the tests

wheel: $(READY)  ## build dist/memcontrol-<version>-py3-none-any.whl
	rm -rf build dist
	$(PY) -m build --wheel --no-isolation

clean:  ## remove what builds and checks leave behind; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find agents conf envs rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +
