# Two commands do everything on a machine with Python 3.11+ and make:
#   make quickstart   environment, install, the main job on embedded data
#   make test         environment, install, the fast tests
# `make site` builds the documentation, `make constraints` pins versions anew.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
# A worker that dies fails the run: pytest-xdist may wait forever for another.
WORKERS := -n 2 --dist loadfile --max-worker-restart=0

.PHONY: quickstart test test-slow test-all lint install site constraints clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install
	$(BIN)/lambda-vit run --config=configs/digits.py --workdir=$(WORKDIR)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	$(BIN)/python -m pytest $(WORKERS)

# The site and the tutorial's ONNX: half a minute, which the quickstart need not
# wait for.
$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs,onnx]'
	touch $@

site: $(VENV)/docs
	$(BIN)/mkdocs build --strict

test-slow: $(VENV)/docs
	$(BIN)/python -m pytest -m 'slow and not parity' $(WORKERS)

test-all: test test-slow

# Pins of what is tested; keeps those that still fit. With UPGRADE=--upgrade the
# newest versions are taken. CUDA is left to the torch that a user installs.
EXTRAS := dev docs gcs hub onnx parity tensorboard
constraints: install
	$(BIN)/python -m pip install --quiet 'uv>=0.9'
	cp constraints.txt constraints.new
	$(BIN)/uv pip compile --quiet --no-header --no-annotate $(UPGRADE) \
	  --python-version 3.11 $(EXTRAS:%=--extra=%) --output-file constraints.new \
	  pyproject.toml
	{ grep '^#' constraints.txt; grep -Ev '^(nvidia|cuda|triton)' constraints.new; } \
	  > constraints.tmp
	mv constraints.tmp constraints.txt
	rm constraints.new

clean:
	rm -rf $(VENV) build dist *.egg-info
