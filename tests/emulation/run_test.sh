#!/usr/bin/env bash
# run_test.sh MODE NAME PROGRAM ARGUMENTS...: one line where it passes, all it said where it fails.
mode=$1 name=$2 program=$3
shift 3
log=$program.log
start=$(date +%s.%N)
if nice "$program" "$@" >"$log" 2>&1; then
  printf '%-5s %-22s %s, %.1f s\n' "$mode" "$name" "$(tail -1 "$log")" "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')"
else
  code=$?
  cat "$log"
  echo "$mode $name FAILED (exit code $code): $program $*"
  exit 1
fi
