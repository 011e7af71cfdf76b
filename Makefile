# make setup: the virtual environment. make demo: the first run. make test: everything that is checked.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=

.PHONY: setup demo test test-gpu lint docs bench clean

setup: $(VENV)/.ready

# Installed again whenever what it was installed from has changed.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it by PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

demo: setup
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/single.yaml train.py --config configs/demo.yaml $(DEMO_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with a GPU: what the other tests cannot see.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The documentation as a site, in docs/_build/html: open index.html there. A warning is an error.
docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: setup
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.morph_cost
	$(BIN)/python -m benchmarks.lora_cost
	$(BIN)/python -m benchmarks.data_feed
	$(BIN)/python -m benchmarks.data_prepare --megabytes 50
	$(BIN)/python -m benchmarks.evaluation_cost
	$(BIN)/python -m benchmarks.ddp
	$(BIN)/python -m benchmarks.save_stall
	$(BIN)/python -m benchmarks.resume_cost
	$(BIN)/python -m benchmarks.digest_cost
	$(BIN)/python -m benchmarks.morph_distributed

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info runs
