# `make` alone explains itself.
# The newest Python that works here, of those with which all tests were run; then a newer one, for which the wheels exist.
KNOWN := 3.13 3.12 3.11 3.14
ifndef PYTHON
PYTHON := $(shell for v in $(KNOWN); do python$$v -c 'import ensurepip, venv' 2>/dev/null && echo python$$v && break; done)
endif
BIN := .venv/bin
STAMP := .venv/installed-from-requirements.lock
PIP = $(BIN)/python -m pip install --disable-pip-version-check --no-deps
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
	@test -n '$(PYTHON)' || { echo 'error: no Python of $(KNOWN) with venv was found: install one (Debian: apt install python3-venv), or name one with make PYTHON=...'; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) not found: install it, or name another with make PYTHON=...'; exit 1; }
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') && case ' $(KNOWN) ' in *" $$version "*) ;; \
	    *) echo "error: requirements.lock is for Python $(KNOWN), $(PYTHON) is $$version: name another with make PYTHON=..."; exit 1;; esac
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test '$(origin PYTHON)' = file || $(BIN)/python -c "import sys; sys.exit(sys.version_info[:2] != $$($(PYTHON) -c 'import sys; print(sys.version_info[:2])'))" || \
	    { echo 'error: .venv has another Python than $(PYTHON): remove it first (rm -r .venv)'; exit 1; }
	@echo "Setting up .venv with $$($(BIN)/python --version): $$(grep -c == requirements.lock) packages, 3.4 GB to download"
	@echo '(less where pip has kept some), 7 GB on the disk, 5 to 15 minutes. pip names each package; then it unpacks them.'
	@# pip prints nothing while it unpacks, so this tells how .venv grows, and ends with the shell that began it.
	@(grown=0; while sleep 3 && kill -0 $$$$ 2>/dev/null; do size=$$(du -sm .venv | cut -f1); \
	    [ $$size -lt $$((grown + 200)) ] || { grown=$$size; echo "  .venv: $$size MB"; }; done) & \
	$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --quiet --no-build-isolation -e .
	@cp requirements.lock $(STAMP)
	@echo 'Environment ready.'

repro: $(STAMP)
	@echo 'Reproducing the benchmark (dvc repro): stages whose inputs did not change are skipped.'
	@$(BIN)/python -m stages.shared.preflight
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo 'Results: results/*/report.html; numbers: $(BIN)/dvc metrics show'

# The run cache goes along: an earlier setting, chosen again, is then fetched and not computed. `--recursive .` is all
# that the chain makes; without it, DVC also takes artifacts/ of other bases out of the tree.
push: $(STAMP)
	@echo 'Copying artifacts/ to the remote storage:' $$($(BIN)/dvc remote list)
	@$(BIN)/dvc push --run-cache

pull: $(STAMP)
	@echo 'Fetching artifacts/ from the remote storage:' $$($(BIN)/dvc remote list)
	@$(BIN)/dvc pull --run-cache --recursive . || { echo 'error: the remote storage lacks what dvc.lock names: run make push in the clone that has it, or name another storage (docs/sharing.md)'; exit 1; }

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
