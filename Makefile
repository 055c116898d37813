# make demo     train a digits network, press it for both targets at int8, print size and accuracy
# make test     install and run the tests (what .ci/run calls)
# make test-all the tests, the slow ones included
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all bench clean

# torch comes first and by its exact version: a resolver left free picks builds with gigabytes of CUDA
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[demo,test]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/digits.py demo/out

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

bench: $(VENV)/installed
	$(BIN)/python bench/zoo.py
	$(BIN)/python bench/convert.py

clean:
	rm -rf $(VENV) demo/out
