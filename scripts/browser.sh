#!/usr/bin/env bash
# Prints the path of a Chromium to try the page with: one of this machine, or with `--install`, where we are root, Debian's package.
# Exits with 1 and one line of reason when there is none to be had.
set -euo pipefail

fail() { printf 'browser: %s\n' "$*" >&2; exit 1; }
find_one() {
    local name
    for name in chromium-headless-shell chromium google-chrome; do command -v "$name" && return 0; done
    return 1
}

find_one && exit 0
[ "${1:-}" = --install ] || fail 'no Chromium is installed (scripts/browser.sh --install)'
[ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1 || fail 'it can be installed by root on Debian only'
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
bounded() { if command -v timeout >/dev/null 2>&1; then timeout 180 "$@"; else "$@"; fi; }
# With a font that has the signs of the page.
install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core)
bounded "${install[@]}" >"$log" 2>&1 || { bounded apt-get update >>"$log" 2>&1 && bounded "${install[@]}" >>"$log" 2>&1; } ||
    fail "Debian's package could not be installed: $(grep -v '^\s*$' "$log" | tail -n 1)"
find_one || fail 'the package has no program of that name'
