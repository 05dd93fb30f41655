#!/bin/bash
# Installs what is missing, builds, and runs every test:
#   release     everything: unit, race, interop, guest, powercut
#   asan        address and undefined-behaviour sanitizers: all but what only repeats it with much
#               more data or other programs' work (img_parity, hostile, install, Linux guests)
#   tsan        the thread sanitizer over everything that uses more than one thread
#   fuzz        each fuzz target for a short while, from its kept corpus; built by clang, which
#               checks what each mutex guards
# and closes with one line that sums them up.
#
#   tools/test.sh                 all of it
#   tools/test.sh release asan    only these parts
# PLATTER_FUZZ_SECONDS (default 30): time for each fuzz target.
set -uo pipefail
cd "$(dirname "$0")/.."
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(release asan tsan fuzz)
jobs=$(nproc)
started=$SECONDS
passed=0 failed=0 skipped=0

say() { printf '\n== [%3d s] %s\n' $((SECONDS - started)) "$*"; }
die() { echo "error: $*" >&2; exit 1; }

tools/setup.sh test || exit 1

build() {  # PRESET [TARGET...]
  local preset=$1; shift
  say "$preset: building"
  cmake --preset "$preset" >"/tmp/platter-configure-$$.log" 2>&1 || { tail -n 20 "/tmp/platter-configure-$$.log" >&2; die "could not configure the $preset build"; }
  rm -f "/tmp/platter-configure-$$.log"
  cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"} |
    { grep -vE '^\[[0-9]+/[0-9]+\] (Building|Linking)' || true; } || die "the $preset build failed"
}

# Runs ctest with the given arguments and adds its counts to the sums.
run() {  # PRESET CTEST-ARGS...
  local preset=$1; shift
  local report="$PWD/build/$preset/report.xml"
  rm -f "$report"
  say "$preset: testing"
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error --output-junit "$report" \
    --timeout 600 "$@" | grep -vE '^ *Start |   Passed  '
  [ -f "$report" ] || die "ctest left no report for $preset"
  local tests fails skips
  read -r tests fails skips < <(python3 - "$report" <<'PY'
import sys, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot()
status = [case.get('status') for case in suite.iter('testcase')]
skips = sum(s in ('notrun', 'disabled') for s in status)
print(len(status), sum(s == 'fail' for s in status), skips)
PY
)
  [ "$tests" -gt 0 ] || die "no test ran in $preset"
  passed=$((passed + tests - fails - skips)); failed=$((failed + fails)); skipped=$((skipped + skips))
}

for part in "${parts[@]}"; do
  case $part in
    release)
      build release
      run release -j "$jobs"
      ;;
    asan)
      build asan unit_tests race_tests powercut_tests interop_tests guest_tests
      run asan -j "$jobs" -L 'unit|race|powercut|interop|guest'
      ;;
    tsan)
      build tsan race_tests
      run tsan -j "$jobs" -L race
      ;;
    fuzz)
      # What uses threads and no fuzzer reaches: clang checks its locking.
      build fuzz fuzzers platter_run
      run fuzz -L fuzz
      ;;
    *) die "unknown part '$part': release, asan, tsan or fuzz" ;;
  esac
done

say "done"
echo "platter: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
