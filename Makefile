# Each target does everything from a clone: makes its environment, installs, runs.
#   make demo [TASK=detection|segmentation] [DATA=shapes|coins]
#   make app [TASK=... DATA=... | CONFIG=... CHECKPOINT=... | CONFIG=work_dirs/...]
#   make chain
#   make test: minutes, for every change; make test-all: the slow ones too, as CI runs them
#   make test-official, make test-matrix, make test-long, make lint, make docs
PYTHON ?= python3
TASK ?= detection
DATA ?= shapes

VENV := .venv
OFFICIAL := .venv-official
# a virtual environment of Windows has another folder
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# file by file to two processes, in alphabetical order: the files that take longest come first, and
# the unit tests, which take little, last
PYTEST := python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo check-demo app chain test test-all test-official test-matrix test-long lint format docs clean

demo: check-demo $(VENV)/installed
	$(BIN)/python tools/demos/demo.py --task $(TASK) --data $(DATA)

# before anything is installed
check-demo:
	@case "$(TASK) $(DATA)" in \
	"detection shapes"|"segmentation shapes"|"detection coins") ;; \
	*) echo "error: TASK=$(TASK) DATA=$(DATA): TASK is detection or segmentation, DATA is shapes, or coins with detection" >&2; exit 2 ;; \
	esac

# A page for the demo's model, which is trained if there is none, or for any other.
DEMO_DIR := work_dirs/demo_$(TASK)_$(DATA)

app: check-demo $(VENV)/installed $(if $(CONFIG)$(wildcard $(DEMO_DIR)/*.pth),,demo)
	$(BIN)/python tools/demos/app.py $(if $(CONFIG),$(CONFIG) $(CHECKPOINT),$(DEMO_DIR) --scale 4)

chain: $(VENV)/installed
	$(BIN)/python tools/demos/chain.py

# What every change must pass at once; `slow` marks what is left out.
test: $(VENV)/dev $(VENV)/browser
	$(BIN)/$(PYTEST) -m 'not slow'

test-all: $(VENV)/dev $(VENV)/browser
	$(BIN)/$(PYTEST)

# What must hold with the last official releases of OpenMMLab too, of what is not slow.
test-official: $(OFFICIAL)/installed
	$(OFFICIAL)/bin/$(PYTEST) -m 'official and not slow'

# Every installed Python, oldest and newest PyTorch, both sets of packages: see tests/helpers/matrix.py.
test-matrix:
	$(PYTHON) tests/helpers/matrix.py

# Whether memory stays flat over 2,000 iterations and 5,000 images.
test-long: $(VENV)/installed
	$(BIN)/python benchmarks/memory.py

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/unit/test_language.py
	@# deptry does not read setup.cfg: what installing made of it, without the extras for developers
	sed '/^\[\(dev\|docs\|test\|openmmlab-official\)\]/,/^$$/d; /^\[/d; /^fcvit-mm/d; /^$$/d' \
		fcvit_mm.egg-info/requires.txt > $(VENV)/requirements.txt
	$(BIN)/deptry fcvit_mm tools --requirements-files $(VENV)/requirements.txt

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The documentation site, in site/. A broken link or a name that has no docstring is an error.
docs: $(VENV)/dev
	$(BIN)/python -m mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or later is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[openmmlab,app]'
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install --editable '.[openmmlab,dev]'
	touch $@

# The page is tested in a real browser: the system's Chromium or Chrome, or Debian's, or else the
# one that Playwright downloads.
$(VENV)/browser: $(VENV)/dev
	command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { test $$(id -u) = 0 && apt-get update && apt-get install -y --no-install-recommends chromium; } \
	|| $(BIN)/playwright install chromium
	touch $@

# A second environment with the official releases; torch is 6 GB and shared with the first.
$(OFFICIAL)/installed: $(VENV)/installed tests/helpers/share_packages.py
	$(PYTHON) -m venv $(OFFICIAL)
	$(BIN)/python tests/helpers/share_packages.py $(OFFICIAL) torch torchvision
	$(OFFICIAL)/bin/python -m pip install --editable '.[openmmlab-official,test]'
	touch $@

clean:
	rm -rf $(VENV) $(OFFICIAL) site
