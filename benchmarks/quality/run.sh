#!/usr/bin/env bash
# Makes the committed results: benchmarks/quality/run.sh [OUT] [OLD]. OUT (default runs/quality) must not exist; OLD is
# an earlier OUT (for example benchmarks/quality/results) to compare with.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/quality}
old=${2:-}
fewstep=.venv/bin/fewstep
for backbone in trellis toy; do
    compare=()
    if [[ -n $old && -f $old/$backbone/rows.csv ]]; then compare=(--compare "$old/$backbone/rows.csv"); fi
    "$fewstep" bench --backbone "$backbone" --steps 1,2,4,8 --seeds 0,1,2,3,4 --out "$out/$backbone" "${compare[@]}"
done
