#!/usr/bin/env bash
# One rung of the ladder, from training to the report: benchmarks/quality/run.sh RUNG [OUT]
#
# Trains every method under every seed with the backbone's presets (as many network evaluations for each), then measures
# all of them in one bench. The same command goes on after an interruption. Rungs: checkerboard, digits, mnist, structure.
# OUT is runs/quality/RUNG by default. To be set from outside: METHODS, SEEDS, JOBS (trainings at a time, one thread
# each), BUDGETS (multiples of the presets' iterations, for the curve of quality against budget), EVALUATIONS (so many
# network evaluations for every method, in place of the presets' iterations).
# The structure rung trains on the shipped objects and on procedural furniture, which it makes first (25 minutes), and measures
# on the furniture's held-out pieces.
set -euo pipefail
cd "$(dirname "$0")/../.."
rung=${1:?a rung: checkerboard, digits, mnist or structure}
out=${2:-runs/quality/$rung}
methods=${METHODS:-mdt-vd mdt-vm cm pcm}
seeds=${SEEDS:-0 1 2 3 4}
budgets=${BUDGETS:-1}
fewstep=.venv/bin/fewstep
case $rung in
    checkerboard) backbone=toy keys=(backbone.target=checkerboard) ;;
    digits | mnist) backbone=images keys=(backbone.source="$rung") ;;
    structure)
        furniture=runs/furniture
        [[ -d $furniture ]] || "$fewstep" data prepare furniture --out "$furniture"
        backbone=trellis keys=(data.root=plugins/shapes3d/fewstep_shapes3d/assets/sweethome3d,"$furniture")
        ;;
    *) echo "unknown rung '$rung': checkerboard, digits, mnist or structure" >&2; exit 2 ;;
esac
measured=("${keys[@]}")
if [[ $rung == structure ]]; then measured=(data.root="$furniture"); fi

label() { if [[ $2 == 1 ]]; then echo "$1"; else echo "$1@${2}x"; fi; }

# Train one student: METHOD SEED BUDGET.
train() {
    local run=$out/$(label "$1" "$3")-$2
    local settings=(--method "$1" --backbone "$backbone" "${keys[@]}" seed="$2" train.threads=1)
    if [[ -f $run/student/config.json ]]; then return; fi
    if [[ -d $run ]]; then
        "$fewstep" distill --resume --out "$run"
    else
        local steps
        if [[ -n ${EVALUATIONS:-} ]]; then
            steps=$(.venv/bin/python -m benchmarks.quality.budget "$EVALUATIONS" "${settings[@]}")
        else
            steps=$("$fewstep" distill "${settings[@]}" --dry-run --toml | sed -n 's/^steps = //p')
        fi
        "$fewstep" distill "${settings[@]}" --out "$run" train.steps="$(awk "BEGIN {print int($steps * $3)}")"
    fi > "$run.log" 2>&1
    echo "trained: $run"
}

mkdir -p "$out"
running=0
students=()
for budget in $budgets; do
    for method in $methods; do
        students+=(--student "$(label "$method" "$budget")=$out/$(label "$method" "$budget")-*[0-9]")
    done
    for seed in $seeds; do
        for method in $methods; do
            train "$method" "$seed" "$budget" &
            if (( ++running >= ${JOBS:-2} )); then
                wait -n || { echo "a training failed: $out/*.log says why" >&2; exit 1; }
                running=$((running - 1))
            fi
        done
    done
done
wait
resume=()
if [[ -d $out/bench ]]; then resume=(--resume); fi
"$fewstep" bench --backbone "$backbone" "${students[@]}" --steps 1,2,4 --seeds "${seeds// /,}" --report "${resume[@]}" \
    --out "$out/bench" "${measured[@]}" threads=1
