# make demo    the whole toolkit on the built-in corpus, on a CPU
# make test    all tests but those that take a while
# make test-slow   those: several processes, models of full size
# make results-small   a reduced table of what teachers bring students, on the built-in corpus, in less than half an hour (docs/results.md)
# make check   format, lint and types
# make clean   remove what these made, the environment too

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow results-small check clean

demo: $(VENV)/.installed
	$(BIN)/dcdctl demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m slow

results-small: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/evidence.py small --work work/small

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo work/small .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Installed in place, so that a change of the code needs no new install; a change of pyproject.toml does.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "dcdctl needs Python 3.11 or newer, and $(PYTHON) is not: name another with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
