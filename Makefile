# `make demo` and `make test` do their own set-up; either works first. Needs Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test lint types imports check-install clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --group dev
	@touch $@

demo: $(VENV)/.runtime ## render a dozen clips, caption them with the bundled model, print what is right
	$(BIN)/reelscribe demo --out demo-output

test: lint types imports ## lint, types, import direction and the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## import direction
	$(BIN)/lint-imports

check-install: ## a plain `pip install .` in an environment of its own gives a working command
	rm -rf .venv-install
	$(PYTHON) -m venv .venv-install
	.venv-install/bin/python -m pip --disable-pip-version-check install --quiet .
	cd /tmp && $(CURDIR)/.venv-install/bin/reelscribe demo --clips 2 --out $(CURDIR)/.venv-install/demo-output
	rm -rf .venv-install

clean: ## remove environments and outputs
	rm -rf $(VENV) .venv-install demo-output build dist
