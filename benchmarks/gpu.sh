#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: `benchmarks/gpu.sh check` runs the tests (at most 4 minutes), then
# `benchmarks/gpu.sh measure` the benchmarks (at most 5). docs/bench.md has the recipe for a machine without network.
#
# Results go to $OUT, or to benchmarks/, as soon as they are known. Steps that fail or are stopped are listed at the end,
# with exit code 1; the others still run. Exit code 2: there is no GPU, or a package is missing. BUDGET: seconds in all.
# PYTHON: another interpreter than python3. DEVICE=cpu: a dry run with small models, in which tests are only collected.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
phase=${1:-}
case $phase in
  check) usual=240 ;;
  measure) usual=300 ;;
  *) echo 'usage: benchmarks/gpu.sh check|measure' >&2; exit 2 ;;
esac
budget=${BUDGET:-$usual}
out=$(mkdir -p "${OUT:-benchmarks}" && cd "${OUT:-benchmarks}" && pwd) || exit 2
export PYTHONPATH=$PWD/.site:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export TIMM_SK_HOME=$out/store # what `deploy` measures is a result too

give_up() {
  echo "benchmarks/gpu.sh: $1" >&2
  exit 2
}

if compgen -G '.whl/*.whl' > /dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target .site .whl/*.whl ||
    give_up 'cannot install the wheels of .whl/'
fi
missing=$("$python" -c 'import importlib.util as i, sys; print(*[n for n in sys.argv[1:] if not i.find_spec(n)])' \
  torch torchvision timm safetensors typer rich pytest xdist pytest_timeout) || give_up "cannot run $python"
[[ -z $missing ]] || give_up "not installed: $missing; pip install -e '.[test]', or put their wheels into .whl/"

gpu=cpu
if [[ $device == cuda* ]]; then
  complaint=$(mktemp)
  gpu=$("$python" -c 'import re, sys, torch
torch.cuda.is_available() or sys.exit(3)
print(re.sub(r"[^A-Za-z0-9]+", "_", torch.cuda.get_device_name()))' 2> "$complaint") || gpu=
  reason=$(grep -m 1 -oE '(CUDA initialization|[A-Za-z]*Error): .*' "$complaint")
  rm "$complaint"
  [[ -n $gpu ]] || give_up "torch sees no NVIDIA GPU here, so nothing was run${reason:+ (${reason:0:200})}"
fi
models=$out/models_$gpu.csv
failed=()
skipped=()

# step NAME SECONDS COMMAND...: run it for at most these seconds, and no longer than the budget lasts
step() {
  local name=$1 limit=$2 left=$((budget - SECONDS)) status
  shift 2
  log=$out/${phase}_${name//[^A-Za-z0-9]/_}.txt
  if ((left < 10)); then
    skipped+=("$name")
    return
  fi
  limit=$((limit * (budget > usual ? budget : usual) / usual)) # a larger budget gives every step its share
  limit=$((limit < left ? limit : left))
  echo "== $name, at most $limit s (after $SECONDS s)"
  timeout --kill-after=5 "$limit" "$@" > "$log" 2>&1
  status=$?
  if ((status == 124 || status == 137)); then
    failed+=("$name (stopped after $limit s)")
  elif ((status)); then
    failed+=("$name (exit code $status)")
  fi
}

tests() {
  local name=$1 limit=$2 workers=$3
  shift 3
  step "$name" "$limit" "$python" -m pytest -q -p no:cacheprovider --tb=short --durations=5 --timeout=55 --maxfail=9 \
    -n "$workers" "$@" "${collect[@]}"
  tail -n 1 "$log" 2> /dev/null
}

kernels() {
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "$python" benchmarks/kernels.py --device "$device" --out "$out/kernels_$gpu.csv" "$@" "${small[@]}"
  cat "$log" 2> /dev/null
}

bench() {
  local name=$1 limit=$2 known=1
  shift 2
  [[ ! -e $models ]] || known=$(wc -l < "$models")
  step "$name" "$limit" "$python" -m timm_sk bench "$@" --sides ours,timm --device "$device" --dtypes bfloat16 \
    --formats channels_last --out "$models" "${tiny[@]}"
  # arch, side, form, task, batch, status, milliseconds, ratio, peak bytes
  tail -n "+$((known + 1))" "$models" 2> /dev/null | cut -d, -f 1,4,5,8,9,12,17,21,24
  grep -h ' fails: ' "$log" 2> /dev/null | cut -c 1-220
}

nets=(sknet50 skresnet34 resnest50d)
graphs() { printf ',%s+graph' "$@"; }
collect=()
small=()
tiny=()
if [[ $device == cpu ]]; then
  nets=(skresnet18 skresnet18 resnest14d)
  graphs() { :; }
  collect=(--collect-only -n 0)
  small=(--smoke)
  tiny=(--batch 4 --size 64 --threads 1)
fi
echo "== $phase on $gpu: results go to $out"
nvidia-smi --query-gpu=name,memory.total,memory.free,driver_version,clocks.sm,clocks.max.sm --format=csv 2>&1 |
  tee "$out/${phase}_nvidia_smi.txt"

if [[ $phase == check ]]; then
  units=tests/ops/kernels
  slow='compiled or autotune or ddp_equivalence or deployed_on_a_gpu'
  step 'machine' 30 "$python" -c 'import sys, numpy, timm, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "numpy", numpy.__version__, "timm", timm.__version__)
print("cuDNN", torch.backends.cudnn.version())
import triton
print("triton", triton.__version__)
from timm_sk.ops import kernels
sys.exit(sys.argv[1] != "cpu" and not kernels.available())' "$device"
  cat "$log"
  tests 'registration and units' 60 8 -m 'gpu or not integration' $units/test_registration.py $units/test_kernels_in_units.py
  tests 'kernels' 60 14 -m 'gpu or not integration' -k "not ($slow)" \
    $units/test_fuse_kernel.py $units/test_select_kernel.py $units/test_on_a_gpu.py
  tests 'two branches' 75 14 -m gpu -k "not ($slow)" $units/test_two_branch.py $units/test_two_branch_unit.py
  tests 'models' 45 6 -m gpu -k "not ($slow)" tests/gpu
  kernels 'bandwidth' 30 --formats channels_last
  tests 'compiled and distributed' 90 6 -m gpu -k "$slow" tests/gpu $units
  grep -hE '^(FAILED|ERROR)|^E  ' "$out"/check_*.txt | cut -c 1-220 | sort | uniq -c | sort -rn | head -n 40
else
  net=${nets[0]}
  folded=(folded folded_merged folded_joined)
  all_folded=$(IFS=,; echo "${folded[*]}")
  kernels 'convolutions' 30 --convolutions --shape 128,256,56,56 --formats channels_last
  bench "$net inference" 80 "$net" --tasks inference --batch 128 --forms "eager,$all_folded$(graphs eager "${folded[@]}")"
  bench "$net training" 45 "$net" --tasks training --batch 128 --forms eager,merged
  for other in "${nets[@]:1}"; do
    bench "$other" 45 "$other" --tasks inference,training --batch 128 --forms "eager,folded,deployed$(graphs deployed)"
  done
  bench "$net, one image" 45 "$net" --tasks inference --batch 1 \
    --forms "eager,$all_folded$(graphs eager "${folded[@]}")"
  kernels 'bandwidth' 40
  bench "$net compiled" 100 "$net" --tasks inference --batch 128 --forms compiled,inductor
  bench "$net, one image compiled" 60 "$net" --tasks inference --batch 1 --forms "compiled$(graphs compiled)"
  bench "$net training compiled" 100 "$net" --tasks training --batch 128 --forms compiled
  for other in "${nets[@]:1}"; do
    bench "$other compiled" 60 "$other" --tasks inference --batch 128 --forms compiled
  done
  bench "$net max-autotune" 120 "$net" --tasks inference --batch 128 --forms max_autotune
fi

echo "== $phase: done after $SECONDS s, results in $out"
if ((${#skipped[@]})); then
  printf 'no time left: %s\n' "${skipped[@]}"
fi
if ((${#failed[@]})); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
