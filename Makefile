# `make demo` and `make test` are each complete alone: they make .venv, install what is locked, and run.
# Everything they write stays in this folder. After the first time they need no network.

PYTHON ?= python3# which Python makes .venv, 3.11 or newer: make demo PYTHON=python3.12
TORCH_INDEX ?=# one more package index, e.g. https://download.pytorch.org/whl/cpu for a torch without CUDA

VENV := .venv
DEV := .[dev,page]
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache

# A set-up is done when its stamp is there; the stamp's name holds the Python and what is to be installed.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCKED := $(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
RUN_READY := $(VENV)/.ready-run-$(PYTHON_VERSION)-$(LOCKED)
DEV_READY := $(VENV)/.ready-dev-$(PYTHON_VERSION)-$(LOCKED)

# Caches of libraries go to .cache, never to the home directory.
export MPLCONFIGDIR := $(CACHE)/matplotlib
export HF_HOME := $(CACHE)/huggingface
export TRITON_HOME := $(CACHE)
export TRITON_CACHE_DIR := $(CACHE)/triton
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/inductor
export XDG_CACHE_HOME := $(CACHE)
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo test lint types pytest wheel clean install install-dev

help:
	@echo 'make demo     SeerAttention beside dense attention on the bundled model: table, CSV, picture'
	@echo 'make test     lint, type check and the whole test suite'
	@echo 'make lint     ruff and mypy alone'
	@echo 'make wheel    build the wheel into dist/'
	@echo 'make clean    remove .venv, caches and builds'
	@echo
	@echo 'PYTHON=python3.12                                     another Python (3.11 or newer)'
	@echo 'TORCH_INDEX=https://download.pytorch.org/whl/cpu      a small torch without CUDA'

demo: export HF_HUB_OFFLINE = 1
demo: install
	$(BIN)/python -m harness method=seer sparsity=0.9

test: lint types pytest

lint: install-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: install-dev
	$(BIN)/python -m mypy

pytest: export HF_HUB_OFFLINE = 1
pytest: export OMP_NUM_THREADS = 1
pytest: install-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

wheel: install-dev
	$(BIN)/python -m hatchling build -t wheel -d dist

clean:
	rm -rf $(VENV) .cache build dist .hypothesis

install: $(RUN_READY)
install-dev: $(DEV_READY)

$(RUN_READY):
	@$(call set_up,.)
	@touch $@

# The development set-up holds the other one.
$(DEV_READY):
	@$(call set_up,$(DEV))
	@touch $@ $(RUN_READY)

# Build tools come first and from the lock too, so that nothing is built with unknown ones; packages that are published
# only as source (four, pure Python) then build with them. requirements.lock constrains: it names more than is installed.
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
PIP_INSTALL = $(PIP) install --quiet --no-cache-dir --constraint requirements.lock \
	$(if $(strip $(TORCH_INDEX)),--extra-index-url $(strip $(TORCH_INDEX)))

define set_up
set -e; \
if [ -z "$(PYTHON_VERSION)" ]; then \
	echo "error: '$(PYTHON)' does not run; name a Python 3.11 or newer: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 2; fi; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "error: '$(PYTHON)' is Python $(PYTHON_VERSION), 3.11 or newer is needed: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 2; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "error: '$(PYTHON)' has no venv module; on Debian and Ubuntu: apt install python$(PYTHON_VERSION)-venv" >&2; exit 2; }; \
[ "$$($(BIN)/python -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$(PYTHON_VERSION)" ] || \
	$(PYTHON) -m venv --clear $(VENV); \
echo "installing the locked packages into $(VENV) (minutes, once)"; \
$(PIP_INSTALL) setuptools hatchling; \
$(PIP_INSTALL) --no-build-isolation --use-pep517 --editable '$(1)'; \
rm -f $(VENV)/.ready-*
endef
