#!/usr/bin/env python3
"""Whether every source file is as clang-format 19 leaves it.

check_format.py ROOT
"""

import os
import pathlib
import shutil
import subprocess
import sys

ROOMS = ('block', 'formats', 'virtio', 'tools', 'tests', 'docs')
SKIPPED = 77


def main():
    root = pathlib.Path(sys.argv[1])
    tool = shutil.which('clang-format-19')
    if tool is None:
        print('skipped: clang-format-19 is not installed')
        return SKIPPED
    files = sorted(str(path) for room in ROOMS for path in (root / room).rglob('*')
                   if path.suffix in ('.cpp', '.h'))
    if not files:
        print(f'no source files under {root}')
        return 1
    jobs = max(1, os.cpu_count() or 1)
    runs = [subprocess.Popen([tool, '--dry-run', '-Werror', *files[i::jobs]]) for i in range(jobs)]
    bad = [run.wait() for run in runs]
    print(f'{len(files)} files looked at')
    if any(bad):
        print('to mend: clang-format-19 -i FILE')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
