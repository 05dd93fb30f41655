#!/bin/bash
# Installs the build into a scratch prefix and builds the example program against it twice: through
# the CMake package and through pkg-config; both must read a disk.
#   install_test.sh SOURCE-DIR BUILD-DIR CXX
set -euo pipefail
source=$1 build=$2 cxx=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/prefix" >"$scratch/install.log"
printf 'platter disk' >"$scratch/disk.raw"
truncate -s 1M "$scratch/disk.raw"
"$scratch/prefix/bin/platter" img convert -f raw -O qcow2 "$scratch/disk.raw" "$scratch/disk.qcow2"
expected='00000000  70 6c 61 74 74 65 72 20 64 69 73 6b 00 00 00 00'

check() {  # PROGRAM HOW
  local got
  got=$("$1" "$scratch/disk.qcow2" 0 16)
  [ "$got" = "$expected" ] || { echo "error: example built with $2 printed: $got" >&2; exit 1; }
  # No length is too long to be refused in a line.
  if got=$("$1" "$scratch/disk.qcow2" 0 9223372036854775807 2>&1) || [[ $got != *'cannot show'* ]]; then
    echo "error: example built with $2 does not refuse a huge length: $got" >&2
    exit 1
  fi
  echo "example built with $2 reads the disk"
}

cmake -S "$source/docs/example" -B "$scratch/cmake" -DCMAKE_PREFIX_PATH="$scratch/prefix" \
  -DCMAKE_CXX_COMPILER="$cxx" >"$scratch/cmake.log" 2>&1 || { cat "$scratch/cmake.log" >&2; exit 1; }
cmake --build "$scratch/cmake" >"$scratch/cmake.log" 2>&1 || { cat "$scratch/cmake.log" >&2; exit 1; }
check "$scratch/cmake/hexdump_disk" "the CMake package"

pc=$(dirname "$(find "$scratch/prefix" -name platter.pc)")
read -ra flags < <(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs platter)
"$cxx" "$source/docs/example/hexdump_disk.cpp" -o "$scratch/by-pkg-config" "${flags[@]}"
check "$scratch/by-pkg-config" "pkg-config"
