# make demo: a picture to a coloured .glb in one step a stage, then a short distillation and its comparison. make test: the tests.
.PHONY: demo test test-all lint docs aot setup clean
export OMP_NUM_THREADS ?= 2
RUN := .venv/bin/fewstep
DEMO := runs/demo

setup:
	@tools/setup.sh

demo: setup
	@rm -rf $(DEMO)
	$(RUN) generate docs/pictures/chair.png --steps 1 -o $(DEMO)/chair.glb
	$(RUN) distill --method mdt-vd --backbone trellis --preset demo --out $(DEMO)/mdt-vd
	$(RUN) bench --backbone trellis --methods mdt-vd,pcm --student "mdt-vd (live, short)=$(DEMO)/mdt-vd" \
		--steps 1,2,4 --seeds 0,1,2 --limit 48 --out $(DEMO)/bench

# A process for each core, of one thread each: most tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8

test: setup
	$(PYTEST) -m "not slow and not gpu"

test-all: setup
	$(PYTEST) -m "not gpu"

# Every shipped tile compiled for an H100 / H200, without a GPU, against benchmarks/kernels/aot.
aot: export EXTRAS ?= dev,trellis,bench,kernels
aot: setup
	.venv/bin/python -m fewstep_kernels.aot --arch 90 --check

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site of docs/ in build/site; any warning is an error.
docs: export EXTRAS ?= dev,trellis,bench,docs
docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

clean:
	rm -rf .venv runs build dist
