#!/usr/bin/env bash
# Prints the path of h2spec, the conformance test of HTTP/2, of one fixed version, under the cache folder, never in the tree.
# With --build it makes it first when it is not there: Go fetches and compiles a handful of modules, which takes seconds.
# POSTERN_H2SPEC=/path/to/h2spec uses that one instead. Exits with 1 and one line of reason when there is none.
set -euo pipefail

version=2.2.1
home="${XDG_CACHE_HOME:-$HOME/.cache}/postern/h2spec"
binary="$home/$version/h2spec"

fail() { printf 'h2spec: %s\n' "$*" >&2; exit 1; }

if [ -n "${POSTERN_H2SPEC:-}" ]; then
    binary="$POSTERN_H2SPEC"
    [ -x "$binary" ] || fail "POSTERN_H2SPEC=$binary is not a program"
fi
if [ ! -x "$binary" ]; then
    [ "${1:-}" = --build ] || fail "h2spec $version is not built here; \`make h2spec\` does it"
    command -v go >/dev/null 2>&1 || fail 'Go is missing, which builds h2spec'
    mkdir -p "$home/module"
    cd "$home/module"
    rm -f go.mod go.sum
    # h2spec says of no module which version it wants, so all are fixed here.
    export GOFLAGS=-mod=mod
    {
        go mod init postern.example/h2spec
        go get -tool "github.com/summerwind/h2spec/cmd/h2spec@v$version+incompatible" golang.org/x/net@v0.62.0 \
            github.com/spf13/cobra@v1.10.2 github.com/fatih/color@v1.19.0
        GOBIN="$home/$version" go install -ldflags '-s -w' github.com/summerwind/h2spec/cmd/h2spec
    } >"$home/log" 2>&1 || fail "h2spec $version could not be built: $(grep -v '^\s*$' "$home/log" | tail -n 1)"
fi
"$binary" --version >/dev/null 2>&1 || fail "$binary does not run on this machine"
printf '%s\n' "$binary"
