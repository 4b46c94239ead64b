# Two commands do everything on a fresh machine with Python 3.11+ and pip: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test test-slow lint bench clean

setup: $(STAMP)

# torch first and pinned: otherwise another package may pull in gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,wsi,spatial,zoo,efficientnet]'
	touch $(STAMP)

demo: setup
	$(BIN)/deepspace demo --out demo --overwrite

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/read_patches.py
	$(BIN)/python benchmarks/train_cnn.py

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
