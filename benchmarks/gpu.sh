#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of under ten minutes: builds for the GPU of this
# machine, proves the kernels on it, times them, then runs the Python tests and the sanitizers.
#
#   benchmarks/gpu.sh [--keep-going] [--rest] [FOLDER]      FOLDER: results (benchmarks/results/gpu)
#
# What all else needs ends the run where it fails, for timings of wrong kernels are worth nothing;
# --keep-going runs the others all the same. Any other stage is told of, and the next one runs. --rest
# goes on where an earlier call ended: what passed then is not run again, and its builds are used. Writes
# FOLDER/summary.json, log.txt and the benchmarks' JSON files, which name the device and the commit
# (SCHATTOR_COMMIT, where the copy has no history). Needs nvcc, python3 with torch and the test
# packages; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
build=build/gpu
jobs=$(nproc)
unavailable=77

# ---- stages

compile_kernel_tests() {
  # Flags as setup.py's.
  local flags="-std=c++17 --expt-relaxed-constexpr -O3 -lineinfo -Icsrc/kernels -Itests/kernels
    -gencode arch=compute_$GPU_ARCH,code=sm_$GPU_ARCH"
  mkdir -p $build
  rm -f $build/*
  {
    for source in csrc/kernels/*.cu; do echo "-c $source -o $build/$(basename "$source").o"; done
    for source in tests/kernels/test_*.cpp; do
      echo "-x cu -c $source -o $build/$(basename "$source" .cpp).test.o"
    done
  } | xargs -P "$jobs" -L 1 nvcc $flags || return 1
  ar rcs $build/kernels.a $build/*.cu.o
  for object in $build/*.test.o; do
    echo "$object $build/kernels.a -o $build/$(basename "$object" .test.o)"
  done | xargs -P "$jobs" -L 1 nvcc -arch=sm_"$GPU_ARCH"
}

# Each wrapper alone before the kernels that are made of them: where both fail, it says why.
tests_in_order() {
  printf '%s\n' $build/test_conformance*.test.o
  printf '%s\n' $build/*.test.o | grep -v conformance
}
# A thousand launches of the largest sizes say nothing more to a sanitizer.
tests_to_sanitize() { tests_in_order | grep -v large; }

# In the foreground, so that a stage that runs out of time takes the test with it. A test that hangs
# leaves time for the others.
kernel_tests() {
  local rc=0
  for object in $(tests_in_order); do
    local test=${object%.test.o}
    echo "-- $test"
    timeout --foreground 60 "$test" || { echo "   exit status $?"; rc=1; }
  done
  return $rc
}

sanitize() {
  local rc=0 options=()
  command -v compute-sanitizer || return $unavailable
  # A virtual machine may refuse it the device.
  timeout --foreground 20 compute-sanitizer --tool memcheck $build/test_conformance 2>&1 |
    grep -q "not supported" && return $unavailable
  # The conformance tests ask for launches and maps that must be refused.
  [ "$1" = memcheck ] && options=(--report-api-errors no)
  for object in $(tests_to_sanitize); do
    local test=${object%.test.o}
    echo "-- $1 $test"
    timeout --foreground 40 compute-sanitizer --tool "$1" "${options[@]}" --error-exitcode 9 "$test"
    case $? in
      0) ;;
      124) echo "   out of time" ;;
      *) rc=1 ;;
    esac
  done
  return $rc
}

python_build() {
  SCHATTOR_CUDA=1 TORCH_CUDA_ARCH_LIST= MAX_JOBS=$jobs python3 setup.py -q build_ext --inplace
}

# Side by side where pytest-xdist is there: the tests are many, and each is small for a GPU. A module
# stays together, since some begin with a minute of work for all their tests. The emulation has been
# run without a GPU.
python_tests() {
  local workers=()
  python3 -c "import xdist" 2> /dev/null && workers=(-n 8 --dist loadscope)
  OMP_NUM_THREADS=2 python3 -m pytest -q "${workers[@]}" --maxfail=1000 -p no:cacheprovider \
    --continue-on-collection-errors tests --device cuda --ignore tests/test_emulated.py
}

directions() { python3 benchmarks/bench_directions.py --out "$folder/directions_cuda.json"; }

steps() { python3 benchmarks/bench_step.py --device cuda --out "$folder/step_cuda.json"; }

family() {
  python3 benchmarks/bench_family.py --device cuda --sets "small GPT" --rounds 3 --out "$folder/family_cuda.json"
}

auto() { python3 benchmarks/bench_auto.py --device cuda --out "$folder/auto_cuda.json"; }

solvers() {
  nvcc -std=c++17 --expt-relaxed-constexpr -O3 -arch=sm_"$GPU_ARCH" -Icsrc/kernels \
    benchmarks/cuda/solvers.cu $build/kernels.a -lcusolver -lcublas -o $build/solvers &&
    $build/solvers > "$folder/solvers.jsonl"
}

demo() { python3 examples/character_gpt/run.py --fast; }

if [ "${1:-}" = --stage ]; then
  shift
  "$@"
  exit
fi

# ---- the run

keep_going=no
rest=no
while [[ "${1:-}" = --* ]]; do
  case $1 in
    --keep-going) keep_going=yes ;;
    --rest) rest=yes ;;
    *) echo "gpu.sh: no option $1; there are --keep-going and --rest" >&2; exit 2 ;;
  esac
  shift
done
GPU_ARCH=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -1 | tr -d .)
[ -n "$GPU_ARCH" ] || { echo "gpu.sh: needs a GPU, and nvidia-smi shows none" >&2; exit 2; }
[ "$GPU_ARCH" = 90 ] && GPU_ARCH=90a
mkdir -p "${1:-benchmarks/results/gpu}"
folder=$(cd "${1:-benchmarks/results/gpu}" && pwd)
export GPU_ARCH folder
log=$folder/log.txt
passed=build/gpu_passed  # stages, a line each
mkdir -p build
[ $rest = yes ] || rm -f "$log" $passed
touch "$log" $passed
# What is interrupted at the deadline may take ten seconds to end, and the summary as many.
deadline=$((SECONDS + 550))
results=()
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

finish() {
  python3 benchmarks/gpu_summary.py "$folder/summary.json" "${results[@]}"
  exit
}

# stage SECONDS FUNCTION ARGUMENT...: output to the log, outcome into the summary. What is out of time
# is interrupted first, so that pytest still prints its failures.
stage() {
  local limit=$1 begin=$SECONDS left=$((deadline - SECONDS)) outcome
  shift
  grep -qx "$*" $passed && return
  if [ $left -lt 5 ]; then
    results+=("$*=no time left=0")
    return
  fi
  echo "== $*" | tee -a "$log"
  timeout -s INT -k 10 $((limit < left ? limit : left)) bash benchmarks/gpu.sh --stage "$@" >> "$log" 2>&1
  case $? in
    0)
      outcome=passed
      echo "$*" >> $passed
      ;;
    $unavailable) outcome=unavailable ;;
    124 | 137) outcome="out of time" ;;
    *) outcome=failed ;;
  esac
  results+=("$*=$outcome=$((SECONDS - begin))")
  echo "   $outcome, $((SECONDS - begin)) s"
  case $outcome in passed | unavailable) return 0 ;; esac
  tail -n 60 "$log"
  return 1
}

# A stage that all later ones need.
needed() { stage "$@" || [ $keep_going = yes ] || finish; }

nvidia-smi >> "$log"
needed 120 compile_kernel_tests
needed 180 kernel_tests
needed 120 python_build
# First what a GPU alone can tell; --rest runs what there is no time left for.
stage 130 directions
stage 100 steps
stage 150 python_tests
stage 100 sanitize memcheck
stage 80 sanitize racecheck
stage 40 sanitize synccheck
stage 60 family
stage 60 auto
stage 40 solvers
stage 60 demo
finish
