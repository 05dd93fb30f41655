#!/bin/bash
# What tools/progress.sh makes of a build's, ctest's and apt-get's words, in a log.
#
#   progress_test.sh SOURCE_DIR
set -euo pipefail
. "$1/tools/progress.sh"
progress_terminal=0

expect() {  # WHAT WANTED GOT
  if [ "$2" != "$3" ]; then
    printf 'FAILED: %s\n--- wanted\n%s\n--- got\n%s\n' "$1" "$2" "$3" >&2
    exit 1
  fi
}

build() {
  echo '[0/2] Re-checking globbed directories...'
  local i
  for i in {1..40}; do
    echo "[$i/40] Building CXX object a.o"
    [ "$i" -ne 6 ] || printf '%s\n' 'FAILED: b.o' '  b.cpp:1: error: `\n'
  done
}
expect "a build: each tenth, and what the compiler says" "\
   x: building 4 of 40
FAILED: b.o
  b.cpp:1: error: \`\\n
   x: building 8 of 40
   x: building 12 of 40
   x: building 16 of 40
   x: building 20 of 40
   x: building 24 of 40
   x: building 28 of 40
   x: building 32 of 40
   x: building 36 of 40
   x: building 40 of 40" "$(build | progress_of_build x)"
expect "nothing to build" "" "$(echo 'ninja: no work to do.' | progress_of_build x)"
if (echo '[1/1] Building'; exit 3) | progress_of_build x >/dev/null; then expect "a build's failure" 3 0; fi

tests() {
  cat <<'LOG'
Internal ctest changing into directory: /x
Test project /x
      Start  1: a.One
 1/4 Test  #1: a.One ....................   Passed    0.01 sec
      Start  2: a.Two  # GetParam() = ***Failed
 2/4 Test  #2: a.Two  # GetParam() = 2 ........***Failed    0.01 sec
  its   output
 3/4 Test  #3: a.Three ............***Skipped   0.01 sec
 4/4 Test  #4: a.Four .............***Exception: SegFault  1.01 sec

0% tests passed
LOG
}
expect "tests: what failed in full, with a count" "\
   x: testing 1 of 4, 0 failed
 2/4 Test  #2: a.Two  # GetParam() = 2 ...***Failed    0.01 sec
   x: testing 2 of 4, 1 failed
  its   output
 3/4 Test  #3: a.Three ...***Skipped   0.01 sec
   x: testing 3 of 4, 1 failed
 4/4 Test  #4: a.Four ...***Exception: SegFault  1.01 sec
   x: testing 4 of 4, 2 failed

0% tests passed" "$(tests | progress_of_tests x)"

packages() {
  printf '%s\n' 'Reading package lists...' '0 upgraded, 2 newly installed, 0 to remove' 'Get:1 a' 'Get:2 b' \
    'Unpacking a' 'Unpacking b' 'Setting up a' 'Setting up b'
}
expect "packages" "\
   fetching package 1 of 2
   fetching package 2 of 2
   unpacking package 1 of 2
   unpacking package 2 of 2
   setting up package 1 of 2
   setting up package 2 of 2" "$(packages | progress_of_packages)"

progress_terminal=1
expect "a terminal: one line over the other" \
  $'\r\e[K   x: building 1 of 1\r\e[K' "$(echo '[1/1] Building' | progress_of_build x)"
