# make demo: a picture to a coloured .glb in one step a stage, a short distillation, and a page that compares. make test: the tests.
.PHONY: demo test test-all lint docs aot setup clean
export OMP_NUM_THREADS ?= 2
RUN := .venv/bin/fewstep
DEMO := runs/demo

# tools/setup.sh EXTRAS makes .venv where it is not there, and adds the extras that it lacks.
setup:
	@tools/setup.sh

demo:
	@tools/setup.sh trellis,bench
	@rm -rf $(DEMO)
	$(RUN) generate docs/pictures/chair.png --steps 1 -o $(DEMO)/chair.glb
	$(RUN) distill --method mdt-vd --backbone trellis --preset demo --out $(DEMO)/mdt-vd
	$(RUN) bench --backbone trellis --methods mdt-vd --student "mdt-vd (live, short)=$(DEMO)/mdt-vd" \
		--steps 1,2 --seeds 0,1 --limit 32 --report --out $(DEMO)/bench columns=6 resamples=100
	$(RUN) view $(DEMO)/bench
	@echo "To use the command yourself: source .venv/bin/activate"

# A process for each core, of one thread each: most tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8

test:
	@tools/setup.sh dev,trellis,bench,images,mesh,optim
	$(PYTEST) -m "not slow and not gpu"

test-all:
	@tools/setup.sh dev,trellis,bench,images,mesh,optim
	$(PYTEST) -m "not gpu"

# Every shipped tile compiled for an H100 / H200, without a GPU, against benchmarks/kernels/aot.
aot:
	@tools/setup.sh trellis,kernels
	.venv/bin/python -m fewstep_kernels.aot --arch 90 --check

lint:
	@tools/setup.sh dev,trellis,bench,images
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site of docs/ in build/site; any warning is an error.
docs:
	@tools/setup.sh docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

clean:
	rm -rf .venv runs build dist
