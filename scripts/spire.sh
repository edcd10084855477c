#!/usr/bin/env bash
# Prints the folder of a SPIRE server and agent to try with, of one fixed version, under the cache folder, never in the tree.
# With --build it makes them first when they are not there: Go fetches and compiles some hundred modules, which takes minutes.
# POSTERN_SPIRE=/folder uses those instead. Exits with 1 and one line of reason when there are none.
set -euo pipefail

version=1.13.3
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/spire"
folder="$home/$version"

fail() { printf 'spire: %s\n' "$*" >&2; exit 1; }

if [ -n "${POSTERN_SPIRE:-}" ]; then folder="$POSTERN_SPIRE"; fi
if [ ! -x "$folder/spire-agent" ] || [ ! -x "$folder/spire-server" ]; then
    [ -z "${POSTERN_SPIRE:-}" ] || fail "POSTERN_SPIRE=$POSTERN_SPIRE holds no spire-server and spire-agent"
    [ "${1:-}" = --build ] || fail "SPIRE $version is not built here; \`make spire\` does it"
    command -v go >/dev/null 2>&1 || fail 'Go is missing, which builds SPIRE'
    mkdir -p "$home/module"
    cd "$home/module"
    rm -f go.mod go.sum
    # A module of our own with SPIRE's programs as tools: the versions of all modules below them are SPIRE's.
    export GOFLAGS=-mod=mod
    {
        go mod init postern.example/spire
        go get -tool "github.com/spiffe/spire/cmd/spire-agent@v$version" "github.com/spiffe/spire/cmd/spire-server@v$version"
        GOBIN="$folder" go install -ldflags '-s -w' \
            github.com/spiffe/spire/cmd/spire-agent github.com/spiffe/spire/cmd/spire-server
    } >"$home/log" 2>&1 || fail "SPIRE $version could not be built: $(grep -v '^\s*$' "$home/log" | tail -n 1)"
fi
"$folder/spire-agent" --version >/dev/null 2>&1 || fail "$folder/spire-agent does not run on this machine"
printf '%s\n' "$folder"
