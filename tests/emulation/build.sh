#!/usr/bin/env bash
# build.sh plain|asan|race OUT SOURCE...: a test (.cpp) and the kernels it runs (.cu), for the
# processor.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mode=$1 out=$(realpath -m "$2")
shift 2
case $mode in
  plain | asan | race) ;;
  *) echo "build.sh: mode must be plain, asan or race, got $mode" >&2; exit 2 ;;
esac
mkdir -p "$(dirname "$out")"
exec make -s -C "$root" "build/emulation/$mode/program" MODE="$mode" OUT="$out" \
  SOURCES="$(realpath -s --relative-to="$root" "$@" | tr '\n' ' ')"
