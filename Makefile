# make demo   toy videos -> pre-train -> fine-tune -> evaluate -> visualise
# make test   the test suite
# make docs   the documentation as a site; a warning or a dead link is an error
# make bench  time of a step, its memory, a real run, many GPUs; tables, JSON in outputs/bench
# All create .venv when needed and install exactly what constraints.txt pins.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs bench clean

demo: $(INSTALLED)
	$(BIN)/hpm-video demo --train

# Without a crashed worker's successor, with which pytest-xdist waits for ever
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder --max-worker-restart 0

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED)
	$(BIN)/sphinx-build -q -W -E --keep-going -b html -c docs . outputs/docs
	@echo outputs/docs/index.html

bench: $(INSTALLED)
	mkdir -p outputs/bench
	for size in small base; do for batch in 4 8; do \
		$(BIN)/hpm-video bench step --size $$size --batch-size $$batch \
			--json outputs/bench/step-$$size-$$batch.json || exit 1; \
	done; done
	$(BIN)/hpm-video bench step --size small --precision float32 \
		--json outputs/bench/step-small-float32.json
	$(BIN)/hpm-video bench step --size small --compile \
		--json outputs/bench/step-small-compiled.json
	$(BIN)/hpm-video bench memory --json outputs/bench/memory.json
	$(BIN)/hpm-video bench train model.size=small data.batch_size=4 data.num_workers=2 \
		--json outputs/bench/train.json
	$(BIN)/hpm-video bench plan configs/pretrain/ssv2_base.yaml --videos 168913 \
		--json outputs/bench/plan.json

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info outputs
