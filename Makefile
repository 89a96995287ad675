# Everything here is a command that a person could type. Needs Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
# The Python of the environment, and the programs it brings (ninja, ruff, …).
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-long test-gpu check install

install: $(BIN)/.ready

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# The S3 server of the storage tests.
.venv/moto/.ready: tests/moto.txt $(BIN)/.ready
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/python -m pip install --requirement tests/moto.txt
	touch $@

demo: install
	$(BIN)/python -m jobs.demo jobs/configs/demo.yaml

test: install .venv/moto/.ready
	$(BIN)/python -m pytest -m 'not long' --ignore=tests/gpu

test-long: install .venv/moto/.ready
	$(BIN)/python -m pytest -m long --ignore=tests/gpu

test-gpu: install
	$(BIN)/python -m pytest tests/gpu

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
