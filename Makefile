# Everything runs in .venv, which the first call makes. PYTHON picks the interpreter it is made from;
# torch, torchvision and Detectron2 that this interpreter has are used as they are.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready_to_test
# tests that run at the same time, each with one thread of PyTorch's
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal
DEMO := configs/shapes/dab_detr_shapes.py

.PHONY: help setup demo test test-fast test-all mutation lint environment clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv and install what training needs into it

demo: $(READY)  ## generate a data set, train on the CPU (10 minutes), evaluate, draw predictions
	$(RUN) train_net.py --config-file $(DEMO) $(ARGS)

test: $(READY_TO_TEST)  ## run all tests except the long ones; ARGS="-k name" selects some
	$(PYTEST) -m "not long" $(ARGS)

test-fast: $(READY_TO_TEST)  ## only tests of model, checkpoints and configs, for quick edit cycles
	$(PYTEST) -m "not long" tests/modeling tests/checkpoint \
		tests/test_config.py tests/test_yaml_config.py tests/test_moved.py tests/test_options.py $(ARGS)

test-all: $(READY_TO_TEST)  ## run all tests, as CI does
	$(PYTEST) $(ARGS)

mutation: $(READY_TO_TEST)  ## which small faults in the package no test finds (an hour); ARGS="modeling hooks"
	$(RUN) -W ignore tools/mutation.py $(ARGS)

lint: $(READY_TO_TEST)  ## check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

environment: $(READY)  ## what is installed, and which Detectron2
	@$(RUN) -m dab_detr.cli.main environment --check

clean:  ## remove .venv and what was built; data and results stay
	rm -rf $(VENV) build dist projects/*.egg-info .pytest_cache .ruff_cache

$(READY): tools/bootstrap.py setup.py pyproject.toml constraints.txt
	$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@

$(READY_TO_TEST): tools/bootstrap.py setup.py pyproject.toml constraints.txt
	$(PYTHON) tools/bootstrap.py $(VENV) --extras dev
	@touch $(READY) $@
