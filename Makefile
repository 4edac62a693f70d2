# Each target does everything from a clone: makes its environment, installs, runs.
#   make demo [TASK=detection|segmentation] [DATA=shapes|coins]
#   make chain
#   make test, make test-official, make lint
PYTHON ?= python3
TASK ?= detection
DATA ?= shapes

VENV := .venv
OFFICIAL := .venv-official
BIN := $(VENV)/bin

.PHONY: demo check-demo chain test test-official lint format clean

demo: check-demo $(VENV)/installed
	$(BIN)/python tools/demo.py --task $(TASK) --data $(DATA)

# before anything is installed
check-demo:
	@case "$(TASK) $(DATA)" in \
	"detection shapes"|"segmentation shapes"|"detection coins") ;; \
	*) echo "error: TASK=$(TASK) DATA=$(DATA): TASK is detection or segmentation, DATA is shapes, or coins with detection" >&2; exit 2 ;; \
	esac

chain: $(VENV)/installed
	$(BIN)/python tools/chain.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What must hold with the last official releases of OpenMMLab too.
test-official: $(OFFICIAL)/installed
	$(OFFICIAL)/bin/python -m pytest -n 2 --dist loadfile -m official

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or later is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[openmmlab,dev]'
	touch $@

# A second environment with the official releases; torch is 6 GB and shared with the first.
$(OFFICIAL)/installed: $(VENV)/installed tests/share_packages.py
	$(PYTHON) -m venv $(OFFICIAL)
	$(BIN)/python tests/share_packages.py $(OFFICIAL) torch torchvision
	$(OFFICIAL)/bin/python -m pip install --editable '.[openmmlab-official,test]'
	touch $@

clean:
	rm -rf $(VENV) $(OFFICIAL)
