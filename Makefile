# Everything a newcomer needs is one word: `make demo` or `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCK ?= requirements/lock.txt
EXTRAS ?= atari,dev,video
WORKERS ?= 2
DEMO_STEPS ?= 20000
SEEDS ?= 0 1 2

.PHONY: help install demo sprites test lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed  ## .venv with everything; LOCK= installs the ranges of setup.cfg instead of the lock

$(VENV)/.installed: setup.cfg $(wildcard $(LOCK))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lit_wm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(LOCK),-c $(LOCK)) -e ".[$(EXTRAS)]"
	@touch $@

demo: install  ## record Pong, train the three routes, print the scorecard; run again, it goes on
	@$(BIN)/lit-wm record --if-missing --env pong --policy sticky --steps $(DEMO_STEPS) --seed 0 --out data/pong
	@for route in dreamer genie jepa; do \
	  $(BIN)/lit-wm fit --config configs/$$route/pong.yaml --ckpt_path last || exit $$?; \
	done
	@$(BIN)/lit-wm compare runs/dreamer_pong runs/genie_pong runs/jepa_pong --out scorecards/pong

sprites: install  ## the sprites comparison: three routes, SEEDS="0 1 2", one scorecard (about two hours); goes on
	@$(BIN)/lit-wm record --if-missing --env sprites --policy sticky --steps 30000 --seed 0 --out data/sprites
	@for seed in $(SEEDS); do for route in dreamer genie jepa; do \
	  $(BIN)/lit-wm fit --config configs/$$route/sprites.yaml --seed_everything $$seed --data.init_args.seed $$seed \
	    --name $${route}_sprites_seed$$seed --ckpt_path last || exit $$?; \
	done; done
	@$(BIN)/lit-wm compare $(foreach seed,$(SEEDS),runs/dreamer_sprites_seed$(seed) runs/genie_sprites_seed$(seed) runs/jepa_sprites_seed$(seed)) --out scorecards/sprites

test: install lint  ## lint, then the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: install  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: install  ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove .venv and caches; data, runs and scorecards stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
