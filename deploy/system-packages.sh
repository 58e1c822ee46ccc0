#!/bin/sh
# Make sure that the machine has what a make target needs, and print the Python to use.
#
#   system-packages.sh build     Python >= 3.11 that can make virtual environments
#   system-packages.sh bench     that, and strace (counts syncs) and etcd (the peer measured beside)
#
# As root on Debian or Ubuntu, what is missing is installed with apt-get. Elsewhere it is named: for
# `build` that is an error, for `bench` a row NOT MEASURED.
set -eu

usable() {
    # ensurepip is the part that Debian ships apart, in python3-venv.
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if usable "$name"; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

can_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -e /etc/debian_version ]
}

install() {
    echo "== apt-get install $*" >&2
    DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! find_python >/dev/null && can_install; then
    install python3 python3-venv
fi
if ! python=$(find_python); then
    echo "Missing: Python 3.11 or newer with venv (Debian, Ubuntu: apt install python3-venv)." >&2
    exit 1
fi

if [ "${1:-build}" = bench ]; then
    missing=
    command -v strace >/dev/null || missing="$missing strace"
    command -v etcd >/dev/null || missing="$missing etcd-server"
    if [ -n "$missing" ]; then
        if can_install; then
            # A peer that cannot be installed is a row of the table, not the end of the bench.
            # shellcheck disable=SC2086
            install $missing || echo "Could not install:$missing" >&2
            # Debian starts what it installs; the bench starts its own etcd, beside nothing else.
            case "$missing" in *etcd*) service etcd stop >/dev/null 2>&1 || true ;; esac
        else
            echo "Missing, the rows that need it are not measured:$missing" >&2
        fi
    fi
fi

echo "$python"
