# Every target sets up what it needs; Python 3.11 to 3.13 (with venv) and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOC_VENV := .venv-proto

.PHONY: help demo test test-all dev proto check docs reference lock sbom fuzz bench robustness attacks arm64 readme clean

help: ## show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# grpcio-tools 1.71.2 makes stubs that every protobuf from 5.29 on loads, but itself needs an
# older protobuf than TensorFlow: it gets an environment of its own.
$(PROTOC_VENV)/.done: | $(BIN)/python
	$(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/pip install --quiet --disable-pip-version-check 'grpcio-tools==1.71.2' 'mypy-protobuf==3.6.0' 'setuptools<81'
	touch $@

dev: $(VENV)/.dev $(PROTOC_VENV)/.done ## set up .venv for development

demo: $(VENV)/.dev ## five clients train on real digits over gRPC; see runs/demo
	$(BIN)/featherfed demo

test: dev ## the tests that take minutes
	$(BIN)/pytest -n 3 --dist worksteal -m "not slow"

test-all: dev ## all tests, the slow ones too
	$(BIN)/pytest

proto: dev ## regenerate proto/*_pb2* from proto/*.proto
	PATH=$(PROTOC_VENV)/bin:$$PATH $(PROTOC_VENV)/bin/python -m grpc_tools.protoc -Ifeatherfed/proto=proto --python_out=src \
	  --grpc_python_out=src --pyi_out=src --mypy_grpc_out=src \
	  featherfed/proto/federation.proto

check: dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src/featherfed

docs: $(VENV)/.dev ## build the documentation's site in docs/_build/html
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx -b html -W --keep-going -q -c docs/site docs docs/_build/html

reference: $(VENV)/.dev ## write the reference pages of docs/ from the code
	$(BIN)/python docs/site/reference.py

lock: $(VENV)/.dev ## write deploy/*constraints.txt: what installer and images install, with hashes
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --extra edge --extra images --no-annotate \
	  --custom-compile-command 'make lock' --output-file deploy/constraints.txt \
	  pyproject.toml deploy/constraints.in
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --only-binary :all: --extra demo --extra images --extra postgres --no-annotate \
	  --custom-compile-command 'make lock' --output-file deploy/server-constraints.txt \
	  pyproject.toml deploy/server-constraints.in

sbom: $(VENV)/.dev ## write build/sbom.json: all packages of deploy/constraints.txt, as CycloneDX
	mkdir -p build
	$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
	  --output-reproducible --output-format JSON --output-file build/sbom.json deploy/constraints.txt

fuzz: dev ## search for bytes that break a decoder, for ten minutes; grows tests/corpus
	$(BIN)/python tests/support/fuzz.py --seconds 600

SWEEPS := presets models peers clients noniid rounds

bench: $(VENV)/.dev ## measure everything in docs/results.md (some hours; goes on after a kill)
	for sweep in $(SWEEPS); do $(BIN)/featherfed sweep benchmarks/$$sweep.toml || exit; done
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/runtimes.py
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/delivery.py
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/own_tasks.py
	$(BIN)/python benchmarks/promise.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/sweep_overhead.py
	$(BIN)/python benchmarks/follow.py
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/tables.py

robustness: $(VENV)/.dev ## kill, fuzz, cut off and overload it, in full (about two hours)
	$(BIN)/python benchmarks/robustness
	$(BIN)/python benchmarks/tables.py

attacks: $(VENV)/.dev ## make the attacks that once succeeded, and measure what they do now (minutes)
	$(BIN)/python benchmarks/attacks
	$(BIN)/python benchmarks/tables.py

arm64: $(VENV)/.dev ## run the client on an emulated arm64 processor and compare (Debian; some minutes)
	$(BIN)/python benchmarks/arm64.py

readme: $(VENV)/.dev ## write the tables of README.md and docs/results.md from what was measured
	$(BIN)/python benchmarks/tables.py

clean: ## remove what the other targets made, but not runs/
	rm -rf $(VENV) $(PROTOC_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
