#!/usr/bin/env bash
# Check and measure everything on an NVIDIA GPU, within 8 minutes: `benchmarks/gpu.sh`.
#
# CSVs with the GPU's name go to $OUT, or beside this script. A step that fails or is stopped does not keep the others
# from running; at the end it is named, and the exit code is 1. Steps for which no time is left are named too:
# `BUDGET=1800 benchmarks/gpu.sh` has time for all that is compiled. Without a GPU the exit code is 2. `PYTHON` names
# another interpreter than python3.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
budget=${BUDGET:-480}
out=${OUT:-benchmarks}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

no_gpu() {
  echo "benchmarks/gpu.sh: there is no NVIDIA GPU here that torch can use, so nothing was measured" >&2
  exit 2
}

# 0 if torch sees a GPU, 3 if it sees none, 1 if there is no torch
look_for_gpu() { "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)' 2> /dev/null; }

look_for_gpu
case $? in
  0) ;;
  3) no_gpu ;;
  *) nvidia-smi -L > /dev/null 2>&1 || no_gpu ;;
esac
if ! "$python" -c 'import torch, timm, safetensors, typer, rich, pytest, xdist, hypothesis' 2> /dev/null; then
  "$python" -m pip install -q -e '.[test,bench]' || exit 1
  look_for_gpu || no_gpu
fi

gpu=$("$python" -c 'import re, torch; print(re.sub(r"[^A-Za-z0-9]+", "_", torch.cuda.get_device_name()))')
models=$out/models_$gpu.csv
failed=()
skipped=()

# step NAME SECONDS COMMAND...: run it for at most these seconds, and no longer than the budget lasts
step() {
  local name=$1 limit=$2 left=$((budget - SECONDS)) status
  shift 2
  if ((left < 10)); then
    skipped+=("$name")
    return
  fi
  # a larger budget gives every step its share
  limit=$((limit * (budget > 480 ? budget : 480) / 480))
  limit=$((limit < left ? limit : left))
  echo "== $name, at most $limit s (after $SECONDS s)"
  timeout --kill-after=5 "$limit" "$@"
  status=$?
  if ((status == 124 || status == 137)); then
    failed+=("$name (stopped after $limit s)")
  elif ((status)); then
    failed+=("$name (exit code $status)")
  fi
}

bench() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" -m timm_sk bench "$@" \
    --device cuda --dtypes bfloat16 --formats channels_last --out "$models"
}

echo "== $gpu: results go to $out"
step 'tests' 110 "$python" -m pytest -q -m 'gpu or not integration' -n 0 --durations=5 tests/gpu tests/ops/kernels
step 'kernels and one unit' 40 "$python" benchmarks/kernels.py --out "$out/kernels_$gpu.csv"

# The nets with targets first, and of them what needs no compiler; then as much of the rest as there is time for: the limits
# add up to more than the budget, since most steps take less.
nets=(sknet50 skresnet34 resnest50d)
both=(--sides ours,timm)
bench 'inference' 75 "${nets[@]}" --tasks inference --batch 256 --forms eager,deployed
bench 'training' 60 "${nets[@]}" --tasks training --batch 128 --forms eager
bench 'sknet50, max-autotune' 120 sknet50 "${both[@]}" --tasks inference --batch 256 --forms compiled,max_autotune
for net in "${nets[@]}"; do
  bench "$net, compiled" 60 "$net" "${both[@]}" --tasks inference --batch 256 --forms compiled
  for batch in 1 8; do
    bench "$net, graphs, batch $batch" 45 "$net" "${both[@]}" --tasks inference --batch "$batch" \
      --forms deployed,compiled,graphed
  done
  bench "$net, compiled, training" 60 "$net" "${both[@]}" --tasks training --batch 128 --forms compiled
done
for net in skresnet34 resnest50d; do
  bench "$net, max-autotune" 120 "$net" "${both[@]}" --tasks inference --batch 256 --forms compiled,max_autotune
done

echo "== done after $SECONDS s: $out/kernels_$gpu.csv, $models"
if ((${#skipped[@]})); then
  printf 'no time left: %s\n' "${skipped[@]}"
fi
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
