# Everything happens in .venv, which the first target makes: nothing is installed anywhere else.
#
#   make demo                       with the defaults
#   make test PYTHON=python3.12     with another Python, 3.11 to 3.13
#   make demo ACCELERATOR=cuda      with torch for CUDA, also where nvidia-smi finds no GPU; cpu: the other way round
#   make demo TORCH='torch==2.13.0+cu130 --extra-index-url URL'
#                                   with another build of torch: URL is the index that PyTorch's own installation page
#                                   gives for it. Another version does too, 2.6 at least. The quotes keep it one value.
#
# Without TORCH: the version in constraints.txt; the build for CUDA if nvidia-smi finds a GPU, else the one for the CPU.

VENV   ?= .venv
PYTHON ?=
TORCH  ?=
DEMO   ?= launch cff-vit
ARGS   ?=
TESTS  ?=

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALLED := $(VENV)/installed

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo gpu test test-fast test-all lint format pytest constraints clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## Make .venv with everything in it

demo: $(INSTALLED) ## launch cff-vit: train a small Vision Transformer, a stage per GPU or core; ARGS='--epochs 5' to change it
	$(BIN)/$(DEMO) $(ARGS)

gpu: $(INSTALLED) ## launch doctor --gpu: test and measure this machine's GPUs into gpu-report/; ARGS='--minutes 10' to change it
	$(BIN)/launch doctor --gpu $(ARGS)

test: lint pytest ## Linters, types and tests, as CI runs them

lint: $(INSTALLED) ## Linters, which room may import which, and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

pytest: $(INSTALLED) ## The tests that CI runs; TESTS='tests/test_cff.py -k margin' for a part of them
	$(BIN)/python -m pytest -n 3 -m "not exhaustive" $(TESTS)

test-fast: lint ## Linters, types, and the tests that start no process
	$(BIN)/python -m pytest -n 2 -m "not exhaustive and not slow" $(TESTS)

test-all: lint ## Linters, types and every test: also over Ray what threads have shown already
	$(BIN)/python -m pytest -n 3 $(TESTS)

format: $(INSTALLED) ## Put the sources into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Editable, so that it is done once: only new requirements are a reason to do it again.
# torch comes first and stays: constraints.txt pins the default version, another TORCH takes its place.
$(INSTALLED): pyproject.toml constraints.txt
	@found=; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    case $$version in \
	        3.11|3.12|3.13) echo "Python $$version: $$python"; exec "$$python" -m venv $(VENV) ;; \
	    esac; \
	    found="$$found $$python is $$version;"; \
	done; \
	echo "localpipe needs Python 3.11, 3.12 or 3.13. Found:$${found:- none of $(or $(PYTHON),python3 python)}" >&2; \
	echo "Install one of them, or say where it is: make ... PYTHON=/path/to/python3.11" >&2; \
	exit 1
	tools/install_torch.sh $(BIN)/python $(VENV)/constraints.txt '$(TORCH)'
	$(PIP) install -c $(VENV)/constraints.txt -e '.[dev]'
	@touch $@

# For those who maintain the requirements: one version of everything that suits Python 3.11 to 3.13. What torch's CUDA
# build needs is left out, as torch pins it itself and the CPU build has no use for it.
constraints: $(INSTALLED) ## Renew constraints.txt from pyproject.toml
	$(PIP) install uv
	{ echo '# What localpipe is tested with, everything included. Made by `make constraints`.'; \
	  echo '$(or $(TORCH),$(shell grep '^torch==' constraints.txt))' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	      --all-extras --no-annotate --no-header pyproject.toml - \
	    | sed -E '/^(cuda|nvidia|triton)/d; s/ *;.*//; s/^(torch==[^+]*)\+.*/\1/' | uniq; } > $(VENV)/constraints.new
	mv $(VENV)/constraints.new constraints.txt

clean: ## Remove what tools left behind; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pipeline workers launch tests -name __pycache__ -prune -exec rm -rf {} +
