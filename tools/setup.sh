#!/bin/bash
# Installs the Debian packages that Platter needs, those that are missing only.
#
#   tools/setup.sh build     what it takes to build and run the programs
#   tools/setup.sh test      that, and the peers and tools of the test suite
set -euo pipefail

build_packages=(
  g++ cmake ninja-build ccache mold pkg-config
  libfmt-dev nlohmann-json3-dev libcli11-dev liburing-dev
  zlib1g-dev libzstd-dev libisal-dev libdeflate-dev libssl-dev
  libgtest-dev libgmock-dev linux-libc-dev python3
)
demo_packages=(seabios e2fsprogs xz-utils binutils cpio)
test_packages=(
  qemu-utils clang-19 libclang-rt-19-dev util-linux acpica-tools
)

case "${1:-build}" in
  build) wanted=("${build_packages[@]}" "${demo_packages[@]}") ;;
  test) wanted=("${build_packages[@]}" "${demo_packages[@]}" "${test_packages[@]}") ;;
  *) echo "usage: $0 [build|test]" >&2; exit 2 ;;
esac

missing=()
for package in "${wanted[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "== packages: all ${#wanted[@]} are installed"
  exit 0
fi
echo "== packages: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "error: not root, and no sudo: install these packages first: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >"$log" 2>&1; }
# The package lists may be missing or old: fetch them and try once more.
install || { "${as_root[@]}" apt-get update >"$log" 2>&1 && install; } || {
  tail -n 5 "$log" >&2
  echo "error: could not install: ${missing[*]}" >&2
  exit 1
}
