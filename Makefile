# make demo: everything from nothing to a table and heat maps. make test: lint and tests. Both make the .venv first.
# make test-oldest: the tests with the oldest Python and packages that pyproject.toml allows, in a .venv-oldest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST_PYTHON ?= python3.10
OLDEST := .venv-oldest
LITE0 := -b efficientnet_lite0 -le blocks.2 -le blocks.4
DEMO_IMAGES := dataset --resize 256 --imagesize 224 -d metal_plate -d bracket_white -d bracket_brown -d bracket_black \
    mpdd demo/synthetic_mpdd

.PHONY: install demo test test-oldest lint bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade --quiet pip
	$(BIN)/python -m pip install --quiet --editable '.[offline,export,dev]'
	touch $@

demo: install
	rm -rf demo
	$(BIN)/python bin/make_synthetic_mpdd.py demo/synthetic_mpdd
	$(BIN)/python bin/run_patchcore.py --save_patchcore_model --save_segmentation_images --save_anomaly_scores \
	    --log_group patchcore demo/results \
	    patch_core $(LITE0) \
	    sampler -p 0.1 approx_greedy_coreset \
	    $(DEMO_IMAGES)
	$(BIN)/python bin/run_fastflow.py --save_model --save_segmentation_images --save_anomaly_scores \
	    --log_group fastflow demo/results \
	    fastflow --backbone efficientnet_lite0 \
	    $(DEMO_IMAGES)

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest

# faiss-gpu needs CUDA 12.6, PyPI's torch 2.6 brings 12.4: FAISS for the CPU takes its place.
$(OLDEST)/.installed: pyproject.toml
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	printf "faiss-gpu; sys_platform == 'never'\n" > $(OLDEST)/overrides.txt
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct \
	    --overrides $(OLDEST)/overrides.txt --editable '.[offline,export,dev]' 'faiss-cpu>=1.14'
	touch $@

# DATAPATH=FOLDER takes the images of a data set with the category metal_plate instead of drawn ones.
bench: install
	$(BIN)/python -m pip install --quiet --editable '.[offline,bench]'
	$(BIN)/python -m benchmarks $(if $(DATAPATH),--data '$(DATAPATH)') --output docs/performance.md

clean:
	rm -rf $(VENV) $(OLDEST) demo
