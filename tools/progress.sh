# Shows how far a long step has come; sourced by the scripts beside it.
#
# On a terminal one line is written over the one before. Elsewhere, such as in the log of a machine
# that tests, a line comes with every tenth of the way, and when a minute has passed since the last.
# shellcheck shell=bash

if [ -t 1 ]; then progress_terminal=1; else progress_terminal=0; fi
progress_tenth=0
progress_second=$SECONDS

# progress_show TEXT DONE TOTAL: where things stand.
progress_show() {
  if [ "$progress_terminal" -eq 1 ]; then
    local columns=${COLUMNS:-80}
    printf '\r\033[K   %s' "${1:0:columns-4}"
    return
  fi
  local tenth=$(($3 > 0 ? $2 * 10 / $3 : 0))
  if [ "$tenth" -ne "$progress_tenth" ] || [ $((SECONDS - progress_second)) -ge 60 ]; then
    progress_tenth=$tenth
    progress_second=$SECONDS
    printf '   %s\n' "$1"
  fi
}

# progress_clear: takes the line away, at the end or before something that stays.
progress_clear() { if [ "$progress_terminal" -eq 1 ]; then printf '\r\033[K'; fi; }

# The following read what a program prints, show how far it has come, and pass on what is of interest
# whole: what the compiler says, and failing tests with their output.

# COMMAND 2>&1 | progress_of_build WHAT
progress_of_build() {
  local line counted='^\[([0-9]+)/([0-9]+)\] '
  while IFS= read -r line; do
    if [[ $line =~ $counted ]]; then
      # (A build first looks by itself whether files have come or gone.)
      [[ $line = *'] Re-checking globbed'* ]] ||
        progress_show "$1: building ${BASH_REMATCH[1]} of ${BASH_REMATCH[2]}" "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
    elif [ "$line" != 'ninja: no work to do.' ]; then
      progress_clear
      printf '%s\n' "$line"
    fi
  done
  progress_clear
}

# ctest --output-on-failure ... 2>&1 | progress_of_tests WHAT
progress_of_tests() {
  local line failed=0 counted='^ *([0-9]+)/([0-9]+) Test +#[0-9]+: ' dots='^(.* )\.{4,}(.*)$'
  while IFS= read -r line; do
    if [[ $line =~ $counted ]]; then
      local done=${BASH_REMATCH[1]} total=${BASH_REMATCH[2]}
      if [[ ! $line =~ ' Passed '+[0-9.]+' sec'$ ]]; then
        [[ $line = *'***Skipped'* ]] || failed=$((failed + 1))
        [[ $line =~ $dots ]] && line=${BASH_REMATCH[1]}...${BASH_REMATCH[2]}
        progress_clear
        printf '%s\n' "$line"
      fi
      progress_show "$1: testing $done of $total, $failed failed" "$done" "$total"
    elif [[ ! $line =~ ^' '+'Start '+[0-9]+: ]] &&
      [[ ! $line =~ ^('Internal ctest changing'|'Test project ') ]]; then
      progress_clear
      printf '%s\n' "$line"
    fi
  done
  progress_clear
}

# apt-get ... 2>&1 | progress_of_packages: what it says is not passed on.
progress_of_packages() {
  local line total=0 fetched=0 unpacked=0 ready=0
  while IFS= read -r line; do
    case $line in
      *' newly installed, '*) [[ $line =~ ([0-9]+)' newly installed' ]] && total=${BASH_REMATCH[1]} ;;
      Get:* | Hit:*)
        if [ "$total" -eq 0 ]; then
          progress_show 'fetching package lists' 0 0
        else
          fetched=$((fetched + 1))
          progress_show "fetching package $fetched of $total" "$fetched" "$total"
        fi ;;
      'Unpacking '*)
        unpacked=$((unpacked + 1))
        progress_show "unpacking package $unpacked of $total" "$unpacked" "$total" ;;
      'Setting up '*)
        ready=$((ready + 1))
        progress_show "setting up package $ready of $total" "$ready" "$total" ;;
    esac
  done
  progress_clear
}
