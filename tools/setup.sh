#!/bin/bash
# Installs the Debian packages that Platter needs, those that are missing only.
#
#   tools/setup.sh build     what it takes to build and run the programs
#   tools/setup.sh test      that, and the peers and tools of the test suite
#   tools/setup.sh check     installs nothing: tells which of `build` are missing; exit code 1 if any
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=tools/progress.sh
. "$here/progress.sh"

build_packages=(
  g++ cmake ninja-build ccache mold pkg-config
  libfmt-dev nlohmann-json3-dev libcli11-dev liburing-dev
  zlib1g-dev libzstd-dev libisal-dev libdeflate-dev libssl-dev
  libgtest-dev libgmock-dev linux-libc-dev python3
)
demo_packages=(seabios e2fsprogs xz-utils binutils cpio)
test_packages=(
  qemu-utils clang-19 clang-format-19 libclang-rt-19-dev util-linux acpica-tools
)

case "${1:-build}" in
  build | check) wanted=("${build_packages[@]}" "${demo_packages[@]}") ;;
  test) wanted=("${build_packages[@]}" "${demo_packages[@]}" "${test_packages[@]}") ;;
  *) echo "usage: $0 [build|test|check]" >&2; exit 2 ;;
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
if [ "${1:-build}" = check ]; then
  echo "packages are missing: ${missing[*]}"
  exit 1
fi
echo "== packages: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "error: not root, and no sudo: install these packages first: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT

show_progress() { tee "$log" | progress_of_packages; }
install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C \
    apt-get install -y --no-install-recommends "${missing[@]}" 2>&1 | show_progress
}
update() { "${as_root[@]}" env LC_ALL=C apt-get update 2>&1 | show_progress; }
# The package lists may be missing or old: fetch them and try once more.
install || { update && install; } || {
  tail -n 5 "$log" >&2
  echo "error: could not install: ${missing[*]}" >&2
  exit 1
}
echo "== packages: installed"
