# make demo     train a digits network, press it for both targets at int8, print size and accuracy
# make demo-study  after the demo: a study of 24 recipes, the picture of its front, a signed bundle of the winner
# make test     install and run the tests
# make lint     ruff: rules and format; make types: mypy. Both and the tests are what .ci/run calls
# make test-all the tests, the slow ones included
# make peers    all operator tests of coremltools and of ExecuTorch's MPS backend, a sample of coremltools' torch tests,
#               through the reference runner
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-study test test-all lint types peers bench clean

# torch comes first and by its exact version: a resolver left free picks builds with gigabytes of CUDA
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[study,bundle,demo,test,lint]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/digits.py demo/out

demo-study: demo
	$(BIN)/python demo/study.py demo/out

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint: $(VENV)/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# mypy looks for a folder that is called as the package is
types: $(VENV)/installed
	mkdir -p .types && ln -sfn .. .types/cidermill
	$(BIN)/python -m mypy

peers: $(VENV)/installed
	$(BIN)/python tests/peers/coremltools_ops.py
	$(BIN)/python tests/peers/coremltools_torch.py
	$(BIN)/python tests/peers/executorch_mps.py

bench: $(VENV)/installed
	$(BIN)/python bench/zoo.py
	$(BIN)/python bench/convert.py
	$(BIN)/python bench/runner.py

clean:
	rm -rf $(VENV) .types demo/out
