#!/usr/bin/env bash
# Prints the path of a Python with the clients that tests call the Workload API with, and makes its virtual environment first when it
# is not there: PyPI `spiffe` on gRPC's C-core, of fixed versions, under the cache folder, never in the tree.
# POSTERN_PYTHON=/path/to/python uses that one instead. Exits with 1 and one line of reason when there is none to be had.
set -euo pipefail

spiffe=0.3.2
grpcio=1.85.0
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/python"
folder="$home/spiffe-$spiffe-grpcio-$grpcio"
python="$folder/bin/python"

fail() { printf 'python-env: %s\n' "$*" >&2; exit 1; }

if [ -n "${POSTERN_PYTHON:-}" ]; then
    "$POSTERN_PYTHON" -c 'import spiffe, grpc' >/dev/null 2>&1 || fail "POSTERN_PYTHON=$POSTERN_PYTHON has no spiffe and grpc"
    printf '%s\n' "$POSTERN_PYTHON"
    exit 0
fi
command -v python3 >/dev/null 2>&1 || fail 'python3 is missing'
mkdir -p "$home"
# Two tests may ask at once; the second finds what the first made.
if command -v flock >/dev/null 2>&1; then exec 9>"$home/lock"; flock 9; fi
if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    python3 -m venv "$folder" >"$home/log" 2>&1 || fail "no virtual environment can be made: $(tail -n 1 "$home/log")"
    bounded() { if command -v timeout >/dev/null 2>&1; then timeout 300 "$@"; else "$@"; fi; }
    bounded "$python" -m pip --disable-pip-version-check --no-input install --quiet --only-binary=:all: \
        "spiffe==$spiffe" "grpcio==$grpcio" >"$home/log" 2>&1 ||
        fail "spiffe $spiffe and grpcio $grpcio could not be installed: $(grep -v '^\s*$' "$home/log" | tail -n 1)"
    : >"$folder/complete"
fi
"$python" -c 'import spiffe, grpc' >/dev/null 2>&1 || fail "$python does not run spiffe on this machine"
printf '%s\n' "$python"
