#!/usr/bin/env bash
# Finds what this machine misses and gets it: iproute2 (ip), nftables (nft), curl, openssl, faketime (clocks of tests),
# h2load (of nghttp2; a client of tests), strace (makes system calls fail in a test), iptables (whose rules a test tries).
# As root: with the package manager. With password-less sudo: the same. As an ordinary user: the packages are
# downloaded and unpacked into .tools/, where `postern` looks for them (POSTERN_TOOLS).
# What cannot be had is named, with what is lost; only Rust and a C compiler are needed to go on.
set -euo pipefail
cd "$(dirname "$0")/.."

tools="${POSTERN_TOOLS:-$PWD/.tools}"
quiet="${POSTERN_SETUP_QUIET:-}"
say() { [ -n "$quiet" ] || printf 'setup: %s\n' "$*"; }
warn() { printf 'setup: %s\n' "$*" >&2; }

# The place of a program: on PATH, in the system folders that an ordinary user's PATH lacks, or in .tools.
find_program() {
    local folder
    command -v "$1" 2>/dev/null && return 0
    for folder in /usr/sbin /sbin /usr/local/sbin "$tools/usr/sbin" "$tools/sbin" "$tools/usr/bin" "$tools/bin"; do
        [ -x "$folder/$1" ] && { printf '%s\n' "$folder/$1"; return 0; }
    done
    return 1
}

package_of() { # program -> package, by the names of the package manager in use
    case "$1:$manager" in
        ip:dnf) echo iproute ;;
        ip:*) echo iproute2 ;;
        nft:*) echo nftables ;;
        h2load:apt-get) echo nghttp2-client ;;
        h2load:*) echo nghttp2 ;;
        *) echo "$1" ;;
    esac
}

manager=none
for candidate in apt-get dnf apk pacman zypper; do
    if command -v "$candidate" >/dev/null 2>&1; then manager="$candidate"; break; fi
done

# --- what must be there -------------------------------------------------------------------------------------------
stop=
if ! command -v cargo >/dev/null 2>&1 && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    warn "Rust is missing. Install it with: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
    stop=1
fi
if ! command -v cc >/dev/null 2>&1 && ! command -v gcc >/dev/null 2>&1 && ! command -v clang >/dev/null 2>&1; then
    warn "a C compiler is missing (the TLS library needs it). Debian: apt-get install build-essential; Fedora: dnf install gcc"
    stop=1
fi
[ -z "$stop" ] || exit 1

# --- what is nice to have -----------------------------------------------------------------------------------------
programs=(ip nft curl openssl faketime h2load strace)
# Only a test needs it, and Debian's package has to be installed to be of use.
if [ "$(id -u)" -eq 0 ]; then programs+=(iptables); fi
missing=()
for program in "${programs[@]}"; do
    find_program "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -eq 0 ]; then
    say "here: ${programs[*]}"
    exit 0
fi
packages=()
for program in "${missing[@]}"; do packages+=("$(package_of "$program")"); done
say "missing: ${missing[*]} (packages: ${packages[*]})"

as_root=()
if [ "$(id -u)" -eq 0 ]; then
    privileged=yes
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    privileged=yes
    as_root=(sudo -n)
else
    privileged=no
fi

# A silent network must not hold the build for ever.
bounded() { if command -v timeout >/dev/null 2>&1; then timeout 180 "$@"; else "$@"; fi; }
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

install_with_manager() {
    case "$manager" in
        apt-get)
            local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}")
            bounded "${install[@]}" >"$log" 2>&1 && return 0
            bounded "${as_root[@]}" apt-get update >>"$log" 2>&1 || return 1
            bounded "${install[@]}" >>"$log" 2>&1 ;;
        dnf) bounded "${as_root[@]}" dnf install -y "${packages[@]}" >"$log" 2>&1 ;;
        apk) bounded "${as_root[@]}" apk add "${packages[@]}" >"$log" 2>&1 ;;
        pacman) bounded "${as_root[@]}" pacman -Sy --noconfirm "${packages[@]}" >"$log" 2>&1 ;;
        zypper) bounded "${as_root[@]}" zypper -n install "${packages[@]}" >"$log" 2>&1 ;;
        *) echo "no package manager that this script knows" >"$log"; return 1 ;;
    esac
}

# Without rights: download, unpack, leave the system alone. Debian and its children only.
unpack_into_tools() {
    [ "$manager" = apt-get ] && command -v dpkg-deb >/dev/null 2>&1 || {
        echo "unpacking without root is known for Debian's packages only" >"$log"; return 1; }
    local state="$tools/apt" options names name wanted=()
    mkdir -p "$state/lists/partial" "$state/archives/partial" "$tools/debs"
    options=(-o "Debug::NoLocking=1" -o "Dir::Cache=$state")
    if ! apt-cache show "${packages[0]}" >/dev/null 2>&1; then
        options+=(-o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=/var/lib/dpkg/status")
        bounded apt-get "${options[@]}" update >"$log" 2>&1 || return 1
    fi
    names="$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "${packages[@]}" | grep '^[a-z0-9]' | sort -u)"
    for name in $names; do
        # Present already, or only needed by a package's installation scripts, which are not run.
        case "$name" in debconf|cdebconf|dpkg|libc6|gcc-*-base|*installer*|libnewt*|libslang*|libtextwrap*) continue ;; esac
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' && continue
        wanted+=("$name")
    done
    (cd "$tools/debs" && bounded apt-get "${options[@]}" download "${wanted[@]}" >"$log" 2>&1) || return 1
    for name in "$tools"/debs/*.deb; do dpkg-deb -x "$name" "$tools" >>"$log" 2>&1 || return 1; done
    rm -rf "$tools/debs" "$state"
}

if [ "$privileged" = yes ]; then
    install_with_manager || unpack_into_tools || true
else
    unpack_into_tools || true
fi

# --- what is still not there --------------------------------------------------------------------------------------
still=()
for program in "${missing[@]}"; do
    if place="$(find_program "$program")"; then say "$program: $place"; else still+=("$program"); fi
done
[ "${#still[@]}" -eq 0 ] && exit 0
for program in "${still[@]}"; do
    case "$program" in
        ip) warn "ip (package $(package_of ip)) is missing and could not be installed: no network namespaces; the demo uses loopback addresses" ;;
        nft) warn "nft (package nftables) is missing and could not be installed: no redirect rules; the demo uses loopback addresses" ;;
        *) warn "$program (package $(package_of "$program")) is missing and could not be installed: the tests that use $program as a peer say so and do not count" ;;
    esac
done
reason="$(grep -v '^\s*$' "$log" | tail -n 1 || true)"
[ -z "$reason" ] || warn "the reason: $reason"
warn "going on without"
