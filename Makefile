# make demo     train a digits network, press it for both targets at int8, print size and accuracy
# make demo-study  after the demo: a study of 24 recipes, the picture of its front, a signed bundle of the winner
# make test     install and run the tests (what .ci/run calls)
# make test-all the tests, the slow ones included
# make peers    all operator tests of coremltools and of ExecuTorch's MPS backend through the reference runner
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-study test test-all peers bench clean

# torch comes first and by its exact version: a resolver left free picks builds with gigabytes of CUDA
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[study,bundle,demo,test]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/digits.py demo/out

demo-study: demo
	$(BIN)/python demo/study.py demo/out

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

peers: $(VENV)/installed
	$(BIN)/python tests/peers/coremltools_ops.py
	$(BIN)/python tests/peers/executorch_mps.py

bench: $(VENV)/installed
	$(BIN)/python bench/zoo.py
	$(BIN)/python bench/convert.py
	$(BIN)/python bench/runner.py

clean:
	rm -rf $(VENV) demo/out
