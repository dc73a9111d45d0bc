# Neon. `make` lists the targets. Needs make and Python 3.11 or newer; everything else goes into .venv.
#
#   make run ARGS="--dataset wine"      arguments for the command
#   make test PYTHON=python3.12         another interpreter (only while .venv does not exist yet)
#   make study PROFILE=full             another profile of the folder workflow/profiles
#   make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                                       the processor-only build of torch: a far smaller download on Linux
#
# TORCH_INDEX is asked for torch and for nothing else. With --extra-index-url (which PIP_ARGS could pass) pip would look for
# *every* package in both places and take the highest version, so that whoever may upload to one of them decides about all.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV     := .venv
BIN      := $(VENV)/bin
PYTHON   ?=
ARGS     ?=
PIP_ARGS ?=
TORCH_INDEX ?=
RUN_DIR  ?= runs/digits
WORKERS  ?= 2
PROFILE  ?= quick

# The work is spread over processes, so every process keeps to one thread.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Figures are drawn without a display, and an executed notebook leaves no trace of the screen it ran on.
export MPLBACKEND ?= Agg
export PIP_DISABLE_PIP_VERSION_CHECK = 1

PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-input -c constraints.txt $(PIP_ARGS)
TORCH_FIRST = $(if $(TORCH_INDEX),$(PIP_INSTALL) --no-deps --index-url '$(TORCH_INDEX)' torch </dev/null,:)

.PHONY: help run study test lab bench docs prepare clean install check lint notebooks pytest

help: ## list the targets (this)
	@echo 'make <target>, where target is one of'
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | while IFS=$$'\t' read -r t d; do printf '  %-10s %s\n' "$$t" "$$d"; done

run: $(VENV)/notebooks.stamp ## train the agent on digits, compress unseen networks, print the table (minutes)
	$(BIN)/neon run --n-networks 16 --episodes 96 --output-dir $(RUN_DIR) $(ARGS) </dev/null

study: $(VENV)/dev.stamp ## compare all methods on many networks with Snakemake (minutes; PROFILE=full: days, see workflow/)
	$(BIN)/python -m snakemake --snakefile workflow/Snakefile --profile workflow/profiles/$(PROFILE) $(ARGS) </dev/null

test: check lint notebooks pytest ## everything that must hold: current exports, lint, notebooks, tests

lab: $(VENV)/dev.stamp ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

bench: $(VENV)/dev.stamp ## measure each part against the naive loop and print the ratios
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(VENV)/dev.stamp ## build the site into _docs (needs Quarto; says what is missing otherwise)
	@$(BIN)/python .ci/docs.py

prepare: $(VENV)/dev.stamp ## clean the notebooks, export neon/, write README.md (before a commit)
	@$(BIN)/python .ci/prepare.py

clean: ## remove run folders and caches; data/results and figures stay
	rm -rf runs nbs/runs/runs .snakemake _docs _proc nbs/.quarto .quarto build dist .pytest_cache .ruff_cache .hypothesis data/cache
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

install: $(VENV)/dev.stamp ## create .venv with everything a developer needs

# -- the steps of `make test`, in order; each can be run alone ------------------------------------------------------
check: $(VENV)/dev.stamp
	@printf '\n== %s\n' '1/4 clean, export and README change nothing'
	@$(BIN)/python .ci/prepare.py --check

lint: $(VENV)/dev.stamp
	@printf '\n== %s\n' '2/4 lint'
	@$(BIN)/ruff check .

notebooks: $(VENV)/dev.stamp
	@printf '\n== %s\n' '3/4 every notebook, from its first cell to its last'
	@n=$$(find nbs -name '[0-9]*.ipynb' -not -path '*/runs/*' -not -path '*/.*' | wc -l); \
	if [ "$$n" -eq 0 ]; then echo 'no notebook found under nbs/: nothing would be tested' >&2; exit 1; fi
	@$(BIN)/nbdev_test --n_workers $(WORKERS) --do_print </dev/null

pytest: $(VENV)/dev.stamp
	@printf '\n== %s\n' '4/4 tests across modules'
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope --durations=10 </dev/null

# Steps print and stop in order, whatever -j says.
.NOTPARALLEL:

# -- the environment -----------------------------------------------------------------------------------------------
# `dev` holds all of `notebooks`, so its stamp counts for both.
$(VENV)/dev.stamp: settings.ini setup.py constraints.txt | $(VENV)/bin/python
	@echo 'installing Neon and its tools into $(VENV) (the first time takes minutes)'
	@$(TORCH_FIRST)
	@$(PIP_INSTALL) -e '.[dev]' </dev/null
	@touch $(VENV)/notebooks.stamp $@

$(VENV)/notebooks.stamp: settings.ini setup.py constraints.txt | $(VENV)/bin/python
	@echo 'installing Neon into $(VENV) (the first time takes minutes)'
	@$(TORCH_FIRST)
	@$(PIP_INSTALL) -e '.[notebooks]' </dev/null
	@touch $@

$(VENV)/bin/python:
	@found=; for p in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11 python); do \
	  if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$p; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'Neon needs Python 3.11 or newer; none was found (name one with make PYTHON=...)' >&2; exit 1; fi; \
	echo "creating $(VENV) with $$($$found --version)"; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); echo 'python -m venv failed (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
