#!/bin/bash
# Installs what is missing, builds, and runs every test:
#   release     everything: unit, race, interop, guest, powercut
#   asan        address and undefined-behaviour sanitizers over all of it, some of it with fewer rounds
#   tsan        the thread sanitizer over everything that uses more than one thread
#               (docs/testing.md#sanitizers says what is not run there, or less of it)
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
for part in "${parts[@]}"; do
  case $part in
    release | asan | tsan | fuzz) ;;
    *) echo "usage: $0 [release|asan|tsan|fuzz]..." >&2; exit 2 ;;
  esac
done
export PATH=$PATH:/usr/sbin:/sbin  # mke2fs, losetup: Debian has them in the superuser's PATH only
jobs=$(nproc)
started=$SECONDS
passed=0 failed=0 skipped=0 failures=()
. tools/progress.sh

say() { printf '\n== [%3d s] %s\n' $((SECONDS - started)) "$*"; }
die() { echo "error: $*" >&2; exit 1; }

tools/setup.sh test || exit 1

build() {  # PRESET [TARGET...]
  local preset=$1; shift
  say "$preset: building"
  local log="/tmp/platter-configure-$$.log"
  cmake --preset "$preset" >"$log" 2>&1 || { tail -n 20 "$log" >&2; rm -f "$log"; die "could not configure the $preset build"; }
  rm -f "$log"
  cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"} 2>&1 | progress_of_build "$preset" ||
    die "the $preset build failed"
}

# Runs ctest with the given arguments and adds its counts to the sums.
run() {  # PRESET CTEST-ARGS...
  local preset=$1; shift
  local report="$PWD/build/$preset/report.xml"
  rm -f "$report"
  say "$preset: testing"
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error --output-junit "$report" \
    --timeout 600 "$@" 2>&1 | progress_of_tests "$preset"
  [ -f "$report" ] || die "ctest left no report for $preset"
  local tests fails skips names name
  { read -r tests fails skips; mapfile -t names; } < <(python3 - "$report" <<'PY'
import sys, xml.etree.ElementTree as tree
cases = list(tree.parse(sys.argv[1]).getroot().iter('testcase'))
failed = [case.get('name') for case in cases if case.get('status') == 'fail']
skips = sum(case.get('status') in ('notrun', 'disabled') for case in cases)
print(len(cases), len(failed), skips)
print(*failed, sep='\n', end='')
PY
)
  [ "$tests" -gt 0 ] || die "no test ran in $preset"
  passed=$((passed + tests - fails - skips)); failed=$((failed + fails)); skipped=$((skipped + skips))
  for name in "${names[@]}"; do failures+=("$preset: $name"); done
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
      run fuzz -j "$jobs" -L fuzz
      ;;
  esac
done

say "done"
[ ${#failures[@]} -eq 0 ] || printf 'failed: %s\n' "${failures[@]}"
echo "platter: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
