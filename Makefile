# `make` alone explains itself.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed-from-requirements.lock
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help repro push pull taste test test-faults test-pythons test-cluster test-gpu check-full-size docs

help:
	@echo 'make repro   run the whole benchmark: train, merge, generate, score, write results/ (does only what is missing)'
	@echo 'make push    copy artifacts/ to the remote storage; make pull: fetch them, after git pull (docs/sharing.md)'
	@echo 'make taste   one picture of the idea: subject, style, five merges and the truth (two minutes)'
	@echo 'make test    lint, check types and run the tests'
	@echo 'make test-faults    kills, flipped bits, full disks and 400,000 spoilt files (docs/reliability.md; about an hour)'
	@echo 'make test-pythons   the built wheel in empty environments of every Python from 3.11 on, with the tests of the core'
	@echo 'make test-cluster   test against a real Slurm of two nodes, started here (needs slurm-wlm, munge and root)'
	@echo 'make test-gpu       the same bits every time, and what a CPU computes (needs a GPU; all other tests use none)'
	@echo 'make check-full-size   the whole UNets of SDXL and KOALA, random weights, on CPU or GPU (6 minutes, 9 GiB of memory)'
	@echo 'make docs    build the documentation in site/ (sets up .venv-docs; needs no .venv)'
	@echo 'All others first set up .venv from requirements.lock if that is needed; PYTHON=... chooses the interpreter (now $(PYTHON)).'

# The stamp holds the lock file that was installed: a newer date with the same content (a fresh checkout) installs nothing.
$(STAMP): requirements.lock pyproject.toml
	@if cmp -s requirements.lock $@; then touch $@; else $(MAKE) --no-print-directory setup; fi

.PHONY: setup
setup:
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) not found: install Python 3.11, or name one with make PYTHON=...'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo 'error: requirements.lock is for Python 3.11, $(PYTHON) is another'; exit 1; }
	@echo 'Setting up .venv from requirements.lock (about 4 GB the first time) ...'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@cp requirements.lock $(STAMP)
	@echo 'Environment ready.'

repro: $(STAMP)
	@echo 'Reproducing the benchmark (dvc repro): stages whose inputs did not change are skipped.'
	@$(BIN)/python -m stages.shared.preflight
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo 'Results: results/*/report.html; numbers: $(BIN)/dvc metrics show'

# The run cache goes along: an earlier setting, chosen again, is then fetched and not computed.
push: $(STAMP)
	@echo 'Copying artifacts/ to the remote storage:' $$($(BIN)/dvc remote list)
	@$(BIN)/dvc push --run-cache

pull: $(STAMP)
	@echo 'Fetching artifacts/ from the remote storage:' $$($(BIN)/dvc remote list)
	@$(BIN)/dvc pull --run-cache

taste: $(STAMP)
	@$(BIN)/lorarar generate dog8 glowing -o taste -n 1 --force -m direct -m ties -m nplora -m klora -m lorarar

test-pythons: $(STAMP)
	@$(BIN)/python tests/wheels.py --tests

# The tests against a real Slurm, where they are asked for, mostly wait: a process of their own costs the others little.
test: $(STAMP)
	@echo 'Linting (ruff) ...'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo 'Checking types (mypy) ...'
	@$(BIN)/mypy
	@echo 'Trying the wheel on other Pythons ...'
	@$(BIN)/python tests/wheels.py --tests 3.12 3.13
	@echo 'Running the tests (pytest) ...'
	@$(if $(TEST_CLUSTER),$(PYTEST) -m quiet tests/cluster,:)
	@$(PYTEST) -n $(if $(TEST_CLUSTER),3 -m 'not slow and not quiet',2) --dist loadfile

test-faults: $(STAMP)
	@$(PYTEST) -m 'slow or not slow' -rs tests/faults

test-cluster: $(STAMP)
	@TEST_CLUSTER=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -rs tests/cluster

test-gpu: $(STAMP)
	@TEST_GPU=1 $(PYTEST) -rs tests/gpu

check-full-size: $(STAMP)
	@$(BIN)/python -m bench.full_size

# A virtual environment of its own: the site needs no PyTorch, as the API is read from the source.
docs: .venv-docs/installed
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir site
	@echo 'Documentation: site/index.html'

.venv-docs/installed: docs/requirements.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@
