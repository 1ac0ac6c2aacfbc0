#!/usr/bin/env bash
# The GPU benchmark on the machine it is called on: benchmarks/gpu/run.sh [--half kernels|whole] [--dry-run] [--out DIR] [--only SECTION...]
# Rows, tables and a chart go to benchmarks/results. Fetches nothing. PYTHON names the interpreter (python3), WHEELS the folder of wheels (benchmarks/gpu/wheels).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-benchmarks/gpu/wheels}
scratch=${SCRATCH:-${TMPDIR:-/tmp}/fewstep-gpu}
site=$scratch/site
rm -rf "$site" && mkdir -p "$site"

if [ -e benchmarks/gpu/fa3/name ]; then # FlashAttention-3 comes in parts, one a call of the device tool
  cat benchmarks/gpu/fa3/part-* >"$scratch/$(cat benchmarks/gpu/fa3/name)"
fi
# One at a time: a peer's wheel that does not fit this machine is a peer less, and no reason to stop.
for wheel in "$WHEELS"/*.whl "$scratch"/*.whl; do
  [ -e "$wheel" ] || continue
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --no-warn-script-location \
    --target "$site" "$wheel" >"$scratch/pip.log" 2>&1 || echo "left out: $(basename "$wheel") ($(tail -1 "$scratch/pip.log"))"
done

export PYTHONPATH=$site:.$(printf ":%s" plugins/*)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # the same sums each time, where determinism is asked for
export TRITON_CACHE_DIR=$scratch/triton TORCHINDUCTOR_CACHE_DIR=$scratch/inductor FEWSTEP_CACHE=$scratch/fewstep
for word in "$@"; do
  if [ "$word" = --dry-run ]; then export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=; fi
done
"$PYTHON" -m benchmarks.gpu.installed "$site" >/dev/null
exec "$PYTHON" -m benchmarks.gpu.run "$@"
