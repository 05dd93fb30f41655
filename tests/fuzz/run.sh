#!/bin/sh
# run.sh FUZZER CORPUS WORK: fuzzes for PLATTER_FUZZ_SECONDS (default 30) from the kept corpus. What
# is found new stays in WORK, and so does the input of a failure, whose name libFuzzer prints.
# PLATTER_SEED (default 1) chooses the inputs, so that a test run does not depend on chance; 0: by chance.
set -eu
mkdir -p "$3/found" "$2"
exec "$1" -seed="${PLATTER_SEED:-1}" -max_total_time="${PLATTER_FUZZ_SECONDS:-30}" -timeout=20 -rss_limit_mb=2048 -max_len=4096 -len_control=0 \
  -print_final_stats=1 -verbosity=1 -artifact_prefix="$3/" "$3/found" "$2"
