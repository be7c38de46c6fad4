# Everything runs in .venv, which the first call makes. PYTHON picks the interpreter it is made from;
# torch, torchvision and Detectron2 that this interpreter has are used as they are.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
# files of tests that run at the same time
WORKERS ?= 2
DEMO := configs/shapes/dab_detr_shapes.py

.PHONY: help setup demo test lint environment clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv and install everything into it

demo: $(READY)  ## draw the shapes, train on the CPU (10 minutes), evaluate, draw predictions
	$(RUN) train_net.py --config-file $(DEMO) $(ARGS)

test: $(READY)  ## run the tests; ARGS="-k name" picks some
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(READY)  ## check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

environment: $(READY)  ## what is installed, and which Detectron2
	@$(RUN) -m dab_detr.environment

clean:  ## remove .venv and what was built; data and results stay
	rm -rf $(VENV) build dist projects/*.egg-info .pytest_cache .ruff_cache

$(READY): tools/bootstrap.py setup.py pyproject.toml constraints.txt
	$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@
