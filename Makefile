# make play: make music in the browser.   make demo: train a small model and make music with it.   make test: run the
# checks and tests. Each first installs the project into .venv. PYTHON selects the interpreter: make demo PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
READY_TO_TEST := .venv/.ready-to-test

help:
	@echo "make play   install into .venv, open a page in the browser where a small trained model makes music"
	@echo "make demo   install into .venv, train a small model on Bach's chorales; continue, fill in and harmonize one (in demo/)"
	@echo "make test   install into .venv, run ruff, import-linter and pytest"
	@echo "make clean  delete demo/"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "$(PYTHON) is not Python 3.10 to 3.13: select one, as in make test PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) cannot create a virtual environment: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
# torch first: otherwise a dependency may install another build of it.
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[music,play]'
	@touch $@

$(READY_TO_TEST): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[music,play,test]'
	@touch $@

# Settings for two CPU cores; a GPU trains this model in seconds.
TRAIN := --preset tiny --ctx_len 384 --batch_size 6 --steps 500 --warmup_steps 20 --lr 2e-3 --lr_final 1e-4 \
  --task mix --completion_weight 0 --infill_weight 0.5 --infill_bars 8 \
  --val_every 250 --val_rows 60 --sample_every 250 --save_every 100
GENERATE = $(BIN)/python -m rwkv_music generate demo/run --prompt "$$piece" --top-p 0.95

demo: $(READY)
	$(BIN)/python -m rwkv_music corpus bach --out demo/midi
	$(BIN)/python -m rwkv_music prepare demo/midi --out demo/data
	$(BIN)/deepspeed train.py --data demo/data --out demo/run --deepspeed_config ds_configs/zero2.json $(TRAIN)
	$(BIN)/python -m rwkv_music evaluate demo/run --data demo/data
# Continue, fill in and harmonize the first four-part chorale of the validation split, on which the model has not been
# trained.
	@piece=$$(sed -n 's/^{"split": "val", "file": "\([^"]*\)".*"n_parts": 4,.*/\1/p' demo/data/pieces.jsonl | head -n 1); \
	$(GENERATE) --context-bars 4 --bars 8 --out demo/music/continued.mid; \
	$(GENERATE) --fill bars=5-8 --out demo/music/filled-in.mid; \
	$(GENERATE) --fill parts=2,3,4 --out demo/music/harmonized.mid
	@echo; echo "Listen to demo/music/*.mid and see the piano roll (.png) of each."
	@echo "Make music with the trained model: $(BIN)/python -m rwkv_music play demo/run"
	@echo "Curves: $(BIN)/tensorboard --logdir demo/run"

play: $(READY)
	$(BIN)/python -m rwkv_music play

test: $(READY_TO_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
# Three processes for two cores: many tests wait for other processes. A file's tests stay together, so that they share fixtures.
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf demo

.PHONY: help play demo test clean
