# Each command installs what it needs into .venv. It needs Python >= 3.11.
#   make quickstart   trains and evaluates on the digits of scikit-learn
#   make test         runs the tests
#   make test-all     also runs the long tests, and test-plans
#   make test-plans   compiles for GPUs and TPUs that are not there
#   make lint         checks rules and format with ruff
#   make docs         builds the documentation into site/
#   make comparison   after quickstart, in about an hour: trains the DDIM baseline and two models of smaller z for the same
#                     number of images, and reports which claims of the paper hold: runs/digits_comparison/report.html
#   make clean        removes .venv and caches
# To choose an interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 3
BIN := $(VENV)/bin

# Containers often set it. Each of the many processes of the tests would then compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart comparison test test-all test-plans lint docs clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m diffae_jax.main --config=configs/digits.py

comparison: quickstart
	for variant in ddim z16 z4; do \
	  $(BIN)/python -m diffae_jax.main --config=configs/digits.py:$$variant --stages=autoencoder || exit; \
	done
	$(BIN)/diffae evaluate runs/digits/bundle --data digits --programs all --steps 10 20 50 100 --code-steps 20 \
	  --num-images 240 --num-samples 300 --baseline runs/digits_ddim --others runs/digits_z16 runs/digits_z4 --out runs/digits_comparison

# Two runs: most tests in parallel, then one at a time the few that must signal a process within a short moment.
test: KINDS := not long and not compilers
test-all: KINDS := (long or not long) and not compilers
test-all: test-plans
test test-all: $(VENV)/.installed-dev
	$(BIN)/python -m tests.browser  # installs a browser if there is none
	export JAX_COMPILATION_CACHE_DIR=$(abspath .cache/compiled) SHARED_TEST_FOLDER=$$(mktemp -d); failed=0; \
	$(BIN)/python -m pytest tests -m 'not alone and ($(KINDS))' -n $(WORKERS) --dist worksteal || failed=1; \
	$(BIN)/python -m pytest $$(grep -lr --include='*.py' 'mark\.alone' tests) -m 'alone and ($(KINDS))' || failed=1; \
	rm -rf $$SHARED_TEST_FOLDER; exit $$failed

# in an environment of its own, because JAX looks for devices of each compiler that is installed
test-plans: $(VENV)-compilers/.installed
	$(VENV)-compilers/bin/python -m pytest tests/plan -m compilers

$(VENV)-compilers/.installed: setup.py
	$(PYTHON) -m venv $(VENV)-compilers
	$(VENV)-compilers/bin/python -m pip install --quiet --editable '.[dev,compilers]'
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-compilers .cache build site *.egg-info

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-docs: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-docs
