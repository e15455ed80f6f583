# make demo   the main job with no camera and no ROS installation: report.html at the end
# make test   lint, types and the fast tests
# Both need Python >= 3.10 and nothing else; everything they install goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

ifdef AMENT_PREFIX_PATH  # a sourced ROS 2 would mix its libraries with those of the wheels
unexport AMENT_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH
endif

.PHONY: demo test clean

demo: $(VENV)/installed-demo
	$(BIN)/perspblur demo

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/installed-%: setup.py
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, this is " + sys.version)'
	@echo "Installing into $(VENV), about a minute the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build dist install log *.egg-info
