# Two commands do everything on a machine with Python 3.11+ and make:
#   make quickstart   environment, install, the main job on embedded data
#   make test         environment, install, the fast tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/digits
# A worker that dies fails the run: pytest-xdist may wait forever for another.
WORKERS := -n 2 --dist loadfile --max-worker-restart=0

.PHONY: quickstart test test-slow test-all lint install clean

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

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not parity' $(WORKERS)

test-all: test test-slow

clean:
	rm -rf $(VENV) build dist *.egg-info
