#!/usr/bin/env bash
# Prints the folder of `prometheus` and `promtool` to try with: those of this machine, or Debian's package, downloaded and unpacked under
# the cache folder, never installed and never in the tree.
# Exits with 1 and one line of reason when there are none to be had.
set -euo pipefail

fail() { printf 'prometheus: %s\n' "$*" >&2; exit 1; }

if found="$(command -v prometheus)" && command -v promtool >/dev/null 2>&1; then
    dirname "$found"
    exit 0
fi
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/prometheus"
folder="$home/usr/bin"
mkdir -p "$home"
# Two tests may ask at once; the second finds what the first made.
if command -v flock >/dev/null 2>&1; then exec 9>"$home/lock"; flock 9; fi
if [ ! -x "$folder/promtool" ]; then
    command -v apt-get >/dev/null 2>&1 || fail 'it is not installed, and only on Debian it can be fetched'
    cd "$home"
    { apt-get download prometheus && dpkg-deb -x prometheus_*.deb .; } >"$home/log" 2>&1 ||
        fail "Debian's package could not be fetched: $(grep -v '^\s*$' "$home/log" | tail -n 1)"
    rm -f prometheus_*.deb
fi
"$folder/promtool" --version >/dev/null 2>&1 || fail "$folder/promtool does not run on this machine"
printf '%s\n' "$folder"
