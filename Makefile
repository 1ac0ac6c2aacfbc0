# make demo: distil a real image-to-3D flow and compare it, about 6 minutes on two cores (not timed). make test: the tests.
.PHONY: demo test test-all lint setup clean
export OMP_NUM_THREADS ?= 2
RUN := .venv/bin/fewstep
DEMO := runs/demo

setup:
	@tools/setup.sh

demo: setup
	@rm -rf $(DEMO)
	$(RUN) distill --method mdt-vd --backbone trellis --preset demo --out $(DEMO)/mdt-vd
	$(RUN) bench --backbone trellis --methods mdt-vd,mdt-vm,cm,pcm --student "mdt-vd (live, short)=$(DEMO)/mdt-vd" \
		--steps 1,2,4 --seeds 0,1,2 --limit 48 --out $(DEMO)/bench

test: setup
	.venv/bin/python -m pytest -m "not slow and not gpu"

test-all: setup
	.venv/bin/python -m pytest -m "not gpu"

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv runs build dist
