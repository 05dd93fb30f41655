#!/bin/sh
# The program carries the C++ runtime: not even a library that it needs brings the shared one along.
set -eu
needed=$(ldd "$1")
printf '%s\n' "$needed"
case $needed in *libc.so*) ;; *) echo "ldd tells nothing"; exit 1 ;; esac
case $needed in *libstdc++* | *libgcc_s* | *libfmt*) echo "the shared runtime is needed"; exit 1 ;; esac
