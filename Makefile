# Each target sets up what it needs, once, in .venv. PYTHON=python3.12 make report takes another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# of the range in pyproject.toml, and the tests that depend on it most
OLDEST = $(shell sed -nE 's/.*"diffusers>=([0-9.]+).*/\1/p' pyproject.toml)
OLDEST_TESTS = families architectures attention backbones loading lora perturb recorder words
IN_PARALLEL = --numprocesses logical --maxprocesses 4 --dist loadfile
BUILD_BOOK = $(BIN)/jupyter-book build book -W --keep-going

# Nothing may wait for a model hub, unless a model on one is asked for.
ifndef SEG4DIFF_MODEL
export HF_HUB_OFFLINE = 1
endif

.PHONY: help demo report book test test-wheel test-oldest check format lab lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/book.stamp  ## a page with a scene, the maps of its words and its masks, in a minute
	$(BIN)/python examples/explore_page.py --out demo.html
	@echo "Open: $(CURDIR)/demo.html"

report: $(VENV)/book.stamp  ## execute the chapters and build the report
	$(BIN)/python book/execute.py notebooks/*.ipynb
	$(BIN)/python book/execute.py --check notebooks/*.ipynb
	$(BUILD_BOOK)
	@echo "Report: $(CURDIR)/book/_build/html/index.html"

book: $(VENV)/book.stamp  ## build the report from the stored outputs
	$(BUILD_BOOK)
	@echo "Report: $(CURDIR)/book/_build/html/index.html"

test: $(VENV)/dev.stamp  ## run the tests, a file at a time on each core (at most four)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

test-oldest: $(VENV)/oldest.stamp  ## run the tests of models on the oldest diffusers
	@PYTHONPATH=$(abspath $(VENV)/oldest) $(BIN)/python -c 'import diffusers; print("diffusers", diffusers.__version__)'
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(VENV)/oldest) $(BIN)/python -m pytest $(IN_PARALLEL) \
	  -W "ignore:CUDA is not available:UserWarning" \
	  $(OLDEST_TESTS:%=tests/test_%.py) $(ARGS)

test-wheel: $(VENV)/dev.stamp  ## build the wheel and run it in an environment of its own
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

check: $(VENV)/dev.stamp  ## ruff and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp  ## sort imports and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: $(VENV)/book.stamp  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks

lock: pyproject.toml  ## write the newest versions that fit into constraints.txt (torch stays)
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet "$$(grep ^torch== constraints.txt)" ".[book,dev]"
	{ sed -n '/^#/p' constraints.txt; \
	  $(VENV)-lock/bin/pip freeze | sed -E '/^(nvidia-|cuda-|triton|seg4diff)/d; s/\+[a-z0-9.]+$$//'; } > $(VENV)-lock/constraints.txt
	mv $(VENV)-lock/constraints.txt constraints.txt
	rm -rf $(VENV)-lock

clean:  ## remove the built report and the environment
	rm -rf book/_build $(VENV)

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed; choose one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/book.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book,dev]"
	touch $@ $(VENV)/book.stamp

# Before the packages of the environment, which stays as it is; diffusers before 0.42 wants an older huggingface_hub too.
$(VENV)/oldest.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/oldest diffusers==$(OLDEST) "huggingface_hub<2"
	touch $@
