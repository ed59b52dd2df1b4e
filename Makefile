PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint requirements.lock
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint image-test bench promises soak canaries requests fuzz conformance real-files clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | column -t -s "$$(printf '\t')"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch first: everything else then finds the pinned one in place.
$(VENV)/.demo: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## train, upload, compress, download and check a real network, end to end
	$(BIN)/python -m deploy.demo --keep var/demo

serve: $(VENV)/.demo ## start the whole service on this machine and keep it up
	$(BIN)/python -m deploy.embedded

test: $(VENV)/.dev ## run every test, against a real broker and real databases it brings itself
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.dev ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

image-test: $(VENV)/.dev ## build both images and run the compose file from them; as root on Debian, with buildah and runc
	$(BIN)/python -m deploy.image_test

bench: $(VENV)/.dev ## print what the service costs, and its pruning beside Torch-Pruning's (an hour; `python -m bench service` for the first)
	$(BIN)/python -m bench

promises: $(VENV)/.dev ## bring about every fault it promises to survive, and print the table (some hours; SHARE=0.1 for a tenth)
	$(BIN)/python -m tests.promises --share $(or $(SHARE),1)

soak: $(VENV)/.dev ## twenty minutes of random faults over small jobs; MINUTES=2 for less
	$(BIN)/python -m tests.promises.soak --minutes $(or $(MINUTES),20)

canaries: $(VENV)/.dev ## upload every crafted file to the whole service; the tests send some of them
	$(BIN)/python -m tests.promises --only P30

requests: $(VENV)/.dev ## send ten thousand drawn requests, right and wrong, spread over all operations; the tests send a few
	$(BIN)/python -m tests.promises --only P35

fuzz: $(VENV)/.dev ## give every reader of files changed files, ten minutes each; MINUTES=1 for less, ONLY="onnx npz" for some
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) $(if $(ONLY),--only $(ONLY))

conformance: $(VENV)/.dev ## take every architecture through the whole engine, and print the table; ONLY="resnet* unet" takes some
	$(BIN)/python -m tests.engine.conformance $(if $(ONLY),--only $(ONLY))

real-files: $(VENV)/.dev ## download public wheels, and take the ONNX files in them through the engine
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --dest var/wheels rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3
	$(BIN)/python -m pytest tests/engine/ingest/onnx/test_real_files.py

clean: ## remove everything that was built or stored here
	rm -rf $(VENV) var build dist *.egg-info client/*.egg-info
