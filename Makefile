# Alliance: the commands of the README. `make` or `make help` lists them.

RUN ?= runs/quickstart
RESUME ?= never
CONFIG ?= configs/pretrain/nano.yaml
DATA ?=
SENSOR ?= auto
SHARDS ?= data/shards
TILE ?= 96
WORKERS ?= 2
RANKS ?= $(if $(filter 1,$(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')),1,2)
ARGS ?=
LONG ?=
JOBS ?= 2

PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv/bin
TILING = --tile $(TILE) --workers $(WORKERS)
# DATA is a folder of scenes, or sources of several sensors: SENSOR[@TILE]=FOLDER[,FOLDER] ...
# What exists is a path, also with "=" in it (lake/year=2023); so is what has a "/" before its first "=".
# Shards of a folder are named like it, those of a source like its sensor.
MIXED = $(if $(findstring =,$(DATA)),$(if $(findstring /,$(call HEAD,$(firstword $(DATA)))),,$(shell test -e '$(DATA)' || echo =)))
HEAD = $(subst @, ,$(firstword $(subst =, ,$(1))))
SENSOR_OF = $(word 1,$(call HEAD,$(1)))
TILE_OF = $(or $(word 2,$(call HEAD,$(1))),$(TILE))
FOLDERS_OF = $(subst $(COMMA), ,$(patsubst $(firstword $(subst =, ,$(1)))=%,%,$(1)))
OWN = $(SHARDS)/$(shell basename "$$(realpath '$(DATA)')" | tr ' ' _)
MADE = $(if $(MIXED),$(foreach item,$(DATA),$(SHARDS)/$(call SENSOR_OF,$(item))),$(OWN))
SYNTHETIC = {"shards":"$(SHARDS)/optical","weight":2},{"shards":"$(SHARDS)/sar","weight":1}
SOURCES = $(if $(DATA),$(subst $(SPACE),$(COMMA),$(foreach folder,$(MADE),{"shards":"$(folder)"})),$(SYNTHETIC))
# Beside synthetic scenes: how well features tell the land cover of small images of other scenes.
COVER = data/synthetic/cover
PROBED = $(if $(DATA),,--probe.data $(COVER) --probe.sensor synthetic-optical --probe.readout groups --probe.every 300)
COMMA := ,
SPACE := $(subst ,, )

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help pretrain test test-lowest lint docs lock clean install shards unused-run

# No process of theirs runs code that lies in the current folder.
pretrain shards data/synthetic $(COVER): export PYTHONSAFEPATH = 1

pretrain: unused-run shards ## pretrain on synthetic scenes, on DATA=<folder>, or on DATA='SENSOR=<folder> ...'
	PATH="$(CURDIR)/$(VENV):$$PATH" OMP_NUM_THREADS=1 deepspeed -q --num_gpus $(RANKS) launch/pretrain.py \
		--config '$(CONFIG)' --run.dir '$(RUN)' --run.resume $(RESUME) --data.sources '[$(SOURCES)]' $(PROBED) $(ARGS)

test: install ## run the tests, JOBS=2 files at once; LONG=1 also the long ones
	OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n $(JOBS) --dist loadfile $(if $(filter 1,$(LONG)),-m '') $(ARGS)

# Old libraries call what newer ones below them have deprecated, and torch 2.11 warns of its own reading: no errors there.
test-lowest: ## the tests with the lowest versions that setup.cfg allows, in an environment of its own, .venv-lowest
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; say where: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	test -x .venv-lowest/bin/pip || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install -q packaging
	.venv-lowest/bin/python .ci/requirements.py lowest > .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install -r .venv-lowest/lowest.txt
	.venv-lowest/bin/python -m pip install --no-deps -e .
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(JOBS) --dist loadfile -W ignore::DeprecationWarning \
		-W 'ignore:The given buffer is not writable:UserWarning' $(ARGS)

lint: install ## ruff and pyright, as in pre-commit
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/pyright

docs: install ## build the pages of docs/ as a site in site/; warnings are errors
	$(VENV)/python -c 'import material' 2>/dev/null || $(VENV)/python -m pip install -e '.[docs]'
	$(VENV)/python -m mkdocs build --strict

lock: install ## write the versions of .venv that setup.cfg needs into requirements.lock, for reproducible installs
	$(VENV)/python .ci/requirements.py installed > requirements.lock.part
	mv requirements.lock.part requirements.lock

# Fixed places alone, whatever SHARDS and RUN say: what lies elsewhere is for its owner to remove.
clean: ## remove what `make pretrain` made of the synthetic scenes in its usual places, and caches; keeps .venv and other runs
	rm -rf -- 'runs/quickstart' 'data/synthetic' 'data/synthetic.part' 'data/shards/optical' 'data/shards/sar'
	rm -rf -- .pytest_cache .ruff_cache .hypothesis build site 'alliance_rs.egg-info'

help: ## list the commands and their variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo 'variables of make pretrain, with their values now:'
	@echo '  DATA=$(DATA)  SENSOR=$(SENSOR)  TILE=$(TILE)  WORKERS=$(WORKERS)  SHARDS=$(SHARDS)'
	@echo '  RUN=$(RUN)  RESUME=$(RESUME) (never, auto)  RANKS=$(RANKS)  CONFIG=$(CONFIG)'
	@echo '  ARGS="--run.steps 100 ..." goes to launch/pretrain.py, or to pytest'

install: .venv/.installed

# Made anew only when a dependency or a tool's settings change.
.venv/.installed: setup.cfg pyproject.toml
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed; say where: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	test -x $(VENV)/pip || $(PYTHON) -m venv .venv
	$(VENV)/python -m pip install -e '.[train,dev]'
	touch $@

# Nothing is made, let alone overwritten, for a run that cannot start.
unused-run:
	@if [ '$(RESUME)' = never ] && ls -A '$(RUN)' 2>/dev/null | grep -qvxE '\.lock|train\.log'; then \
		echo '$(RUN) already holds a run. Go on with it:   the same command and RESUME=auto' >&2; \
		echo '                 or use another name:   the same command and RUN=runs/other' >&2; \
		echo '                 or begin again:        $(if $(filter runs/quickstart,$(RUN)),make clean,rm -r $(RUN))' >&2; \
		exit 1; \
	fi

# Complete shards are found complete; interrupted ones are gone on with.
shards: install $(if $(DATA),,data/synthetic $(COVER))
ifneq ($(MIXED),)
	$(foreach item,$(DATA),$(VENV)/python launch/shards.py $(foreach folder,$(call FOLDERS_OF,$(item)),'$(folder)') \
		--sensor $(call SENSOR_OF,$(item)) --out '$(SHARDS)/$(call SENSOR_OF,$(item))' \
		--tile $(call TILE_OF,$(item)) --workers $(WORKERS) && )true
else ifneq ($(DATA),)
	$(VENV)/python launch/shards.py '$(DATA)' --sensor '$(SENSOR)' --out '$(OWN)' $(TILING)
else
	$(VENV)/python launch/shards.py data/synthetic/optical --sensor synthetic-optical --out '$(SHARDS)/optical' $(TILING)
	$(VENV)/python launch/shards.py data/synthetic/sar --sensor synthetic-sar --out '$(SHARDS)/sar' $(TILING)
endif

data/synthetic: | .venv/.installed
	rm -rf -- '$@.part'
	$(VENV)/python launch/synthetic.py scenes $@.part --cube 0
	mv $@.part $@

$(COVER): | data/synthetic
	rm -rf -- '$@.part'
	$(VENV)/python launch/synthetic.py cover $@.part --seed 1
	mv $@.part $@
