# Everything a person or a machine types. Each target makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check docs truth clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[examples]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[examples,test]'
	@touch $@

demo: $(VENV)/.demo  ## train a healthy and a sick network on real digits, watched
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.test  ## the test suite, under 8 minutes on 2 cores
	$(BIN)/python -m pytest

test-all: $(VENV)/.test  ## the same, and what measures the ward's labels by plain torch
	$(BIN)/python -m pytest -m ''

check: $(VENV)/.test  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.test  ## build the reference from the docstrings
	$(BIN)/python docs/build.py

truth: $(VENV)/.test  ## compare every measurement with plain torch, and write docs/truth_table.md
	$(BIN)/python -m pytest tests/truth --ignore tests/truth/test_table.py --truth-table docs/truth_table.md

clean:  ## remove the environment and what runs leave behind
	rm -rf $(VENV) logs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
