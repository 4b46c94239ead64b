# Two commands do everything on a fresh machine with Python 3.11+ and pip: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

.PHONY: setup demo test test-slow lint docs bench clean

setup: $(STAMP)

# torch first and pinned: otherwise another package may pull in gigabytes of CUDA
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,wsi,spatial,zoo,efficientnet,leiden,distributed,viewer,docs]'
	touch $(STAMP)

demo: setup
	$(BIN)/deepspace demo --out demo --overwrite

# one thread a process: two processes with two each would fight over two cores
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow --durations 20

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

# tutorials are executed; a warning is an error
docs: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q docs build/docs

bench: setup
	$(BIN)/python benchmarks/read_patches.py
	$(BIN)/python benchmarks/train_cnn.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/encoders.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cohort.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fits.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/dense.py --encoder vgg16 --encoder stain
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kriging_scale.py --spots 1000 2500 5000 --genes 1000
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/whole_slide.py --sides 12500 25000 50000
	$(BIN)/python benchmarks/viewer.py

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
