# Everything a person or a CI machine runs. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Flower and Ray report usage to their makers unless told not to; nothing started from here does.
export FLWR_TELEMETRY_ENABLED = 0
export RAY_USAGE_STATS_ENABLED = 0

# Tests start many processes: the sources are compiled once, for all of them.
unexport PYTHONDONTWRITEBYTECODE

PACKAGES := benchmarks cli client experiments models proto server simulations
# `api` is the package `diastole` itself.
FOLDERS := api $(PACKAGES)
RUN_EXTRAS := simulation
DEV_EXTRAS := $(RUN_EXTRAS),dev

# The install is a tree of links to the sources, so that type checkers can follow it. Editing a file needs no new
# install; adding or removing one does. So a stamp is named after the list of files and after what is required.
FINGERPRINT := $(shell { find $(FOLDERS) -type f \( -name '*.py' -o -name '*.pyi' -o -name '*.proto' \
	-o -name '*.cpp' -o -name '*.h' -o -path '*/assets/*' -o -name py.typed \) | LC_ALL=C sort; cat pyproject.toml constraints.txt; } | cksum | cut -d ' ' -f 1)
RUN_STAMP := $(VENV)/.installed-run-$(FINGERPRINT)
DEV_STAMP := $(VENV)/.installed-dev-$(FINGERPRINT)

# Two processes, each with half of the modules in a row, so that what a module starts is started once.
TWO := -n 2 --dist worksteal

# $(1): the extras. Twice quiet, because pip still prints its errors then, and only those.
define install
	@echo "Installing diastole[$(1)] in $(VENV) (the first time takes a few minutes)"
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -m pip install -qq --config-settings editable_mode=strict -c constraints.txt -e ".[$(1)]"
endef

.DEFAULT_GOAL := help
.PHONY: help run test test-all coverage lint types site bench gpu studies docs proto wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

run: $(RUN_STAMP) ## install, then run a small federation from end to end
	$(BIN)/diastole demo

test: $(DEV_STAMP) ## the tests, without the slow ones
	$(BIN)/python -m pytest $(TWO)

test-all: $(DEV_STAMP) ## every test
	$(BIN)/python -m pytest -m ''

coverage: $(DEV_STAMP) ## the tests once more, and which lines and branches they run
	$(BIN)/python -m pytest $(TWO) --cov

lint: $(DEV_STAMP) ## style, format, types, and a documentation without warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory site

types: $(DEV_STAMP) ## types alone
	$(BIN)/mypy --strict -p diastole

site: $(DEV_STAMP) ## the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

bench: $(RUN_STAMP) ## measure on this machine, each time against a baseline
	$(BIN)/diastole bench

# No virtual environment: on a machine with a GPU, PYTHON is whatever has torch for it.
gpu: ## tests and benchmarks on a GPU, from the sources as they are
	@$(PYTHON) packaging/gpu.py $(GPU)

studies: $(RUN_STAMP) ## list the studies of the documentation: commands, cost, how far they are
	@$(BIN)/python packaging/studies.py

docs: $(RUN_STAMP) ## renew what docs/ has from the code: methods, metrics, the schemas of what `diastole admin` prints
	$(BIN)/diastole methods --update docs/methods.md
	$(BIN)/diastole admin schema > docs/schemas/admin.json
	$(BIN)/python -m diastole.server.observe.table docs/operations.md

proto: $(DEV_STAMP) ## regenerate the code of the wire contract
	$(BIN)/python -m diastole.proto.generate

# setuptools would pack whatever an earlier build left in build/lib.
wheel: | $(BIN)/pip ## build dist/diastole-*.whl
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m pip wheel -qq --no-deps -w dist .

clean: ## remove what the targets made, except the virtual environment
	rm -rf build dist report comparison *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.installed-*
	find $(FOLDERS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEV_STAMP): | $(BIN)/pip
	$(call install,$(DEV_EXTRAS))
	@touch $(DEV_STAMP) $(RUN_STAMP)

$(RUN_STAMP): | $(BIN)/pip
	$(call install,$(RUN_EXTRAS))
	@touch $@

$(BIN)/pip:
	@command -v $(PYTHON) > /dev/null || { echo "diastole needs Python 3.11 or newer, but there is no '$(PYTHON)'; try make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "diastole needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
