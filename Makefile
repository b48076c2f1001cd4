# make demo, make test: each sets up everything it needs in .venv
PYTHON ?= python3
# Test processes, 1 to 2.5 GB each.
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test torture lint clean
demo: .venv/demo.done
	$(BIN)/tcl-zoo demo

test: .venv/test.done lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Hours: kills, fuzzing, several processes, long runs, the wheel.
torture: .venv/test.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m pytest -m slow -s

lint: .venv/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs/demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("tcl_zoo needs Python 3.10 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 10) else 0'
	$(PYTHON) -m venv .venv

.venv/demo.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/test.done: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@ .venv/demo.done
