# make demo           the whole toolkit on the built-in corpus, on a CPU
# make test           all tests but the slow ones
# make test-slow      the slow tests (several processes, models of full size), then all others without what makes them fast
# make results-small  a reduced table of what teachers add to students, on the built-in corpus, in under half an hour (docs/evidence/results.md)
# make claims         the measurements behind the pages again, each of up to ten minutes: PASS, DRIFT or NOT RUN (CONTRIBUTING.md)
# make claims-all     the long ones too; CLAIMS="--vision DIR --text DIR --karpathy JSON --images ZIP" gives what a clone lacks
# make gpu            checks and times this machine's GPU, in work/gpu; without one, tiny models on the CPU (docs/recipes.md)
# make check          format, lint and types; prints what a reader of the package meets
# make docs           the documentation as a site, in site/
# make constraints    constraints.txt again: the newest versions of all packages, on which the tests then run
# make clean          remove what these made, with the environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The versions that the tests ran on: what is released tomorrow cannot break a build of today.
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: demo test test-slow results-small claims claims-all gpu check docs constraints clean

demo: $(VENV)/.installed
	$(BIN)/dcdctl demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow
	DCDCTL_PLAIN_TESTS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

results-small: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/evidence.py small --work work/small

claims: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/claims.py $(CLAIMS)

claims-all: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/claims.py --all $(CLAIMS)

gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py --out work/gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/support/package_counts.py

# Material for MkDocs ends in May 2027 and says so at each build; its successor Zensical reads the same mkdocs.yml.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # not --quiet, which hides warnings and lets them pass

# Without torch, torchvision and what comes with them: which build is right depends on the machine's GPU.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --editable '.[dev]' --requirement docs/requirements.txt
	build/constraints/bin/python -m pip freeze --exclude-editable > build/constraints/all.txt
	grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' build/constraints/all.txt > constraints.txt
	rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist demo site work/small work/claims .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Installed in place: only a change of these two files needs a new install.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/.installed

# Without dcdctl and torch: the reference is read from the source, which is not imported.
$(VENV)/.installed-docs: docs/requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement docs/requirements.txt
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "dcdctl needs Python 3.11 or newer, and $(PYTHON) is not: name another with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
