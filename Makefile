# Every target sets up .venv first, once; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ENV ?= phantom
ARGS ?=
# Where PyTorch's CPU wheels lie. Empty: only pip's own configuration is asked (on Linux that is PyPI's CUDA build).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Set it to choose the interpreter; otherwise the first of these that is recent enough.
PYTHON ?=
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)

PY := .venv/bin/python
READY := .venv/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup train test bench lint format typecheck check wheel clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY)  ## create .venv with everything, from nothing (again only when the dependencies change)

# torch goes in alone and first. Its CPU index is an *extra* one: "2.13.0+cpu" sorts above PyPI's CUDA build "2.13.0", and
# where the index cannot be reached pip falls back on its own configuration after one retry.
$(READY): pyproject.toml constraints.txt
	@if [ ! -x $(PY) ]; then \
	  found=; \
	  for python in $(PYTHONS); do \
	    if "$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11 or newer with venv among: $(PYTHONS) — install one, or name it: make setup PYTHON=/path/to/python" >&2; \
	    exit 2; \
	  fi; \
	  "$$found" -m venv .venv; \
	fi
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then index=; else index="$(TORCH_INDEX)"; fi; set -x; \
	$(PY) -m pip install --no-deps --retries 1 --constraint constraints.txt $${index:+--extra-index-url "$$index"} torch
	$(PY) -m pip install --constraint constraints.txt setuptools
	$(PY) -m pip install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

train: $(READY)  ## learn what to fine-tune: make train [ENV=phantom] [ARGS="key=value ..."]
	$(PY) -m agents.train env=$(ENV) $(ARGS)

test: $(READY)  ## the whole test suite: make test [ARGS="-m 'not slow'"]
	$(PY) -m pytest $(ARGS)

bench: $(READY)  ## the benchmarks: writes runs/bench/<name>.json
	$(PY) -m agents.bench $(ARGS)

lint: $(READY)  ## style, formatting and the direction of imports
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	.venv/bin/lint-imports

format: $(READY)  ## rewrite the files as `make lint` wants them
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

typecheck: $(READY)  ## mypy --strict over everything
	$(PY) -m mypy

check: lint typecheck  ## what CI asks for before the tests

wheel: $(READY)  ## dist/memcontrol-*.whl
	rm -rf build dist
	$(PY) -m build --wheel --no-isolation

clean:  ## remove what builds and checks leave behind; .venv and runs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find agents conf envs rewards tests -name __pycache__ -type d -prune -exec rm -rf {} +
