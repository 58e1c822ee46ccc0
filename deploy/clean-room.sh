#!/bin/sh
# Prove the two commands on a machine that has nothing: a fresh Debian in a directory.
#
#   deploy/clean-room.sh [command ...]     by default: make test && make demo && make demo-down
#
# Needs root and debootstrap. Clones the last commit into the directory, installs only what the README
# asks for (git, make, Python), and runs the commands there, with this machine's settings for pip and
# its network. The directory is removed at the end, unless CLEAN_ROOM names one to keep and use again.
set -eu

repository=$(cd "$(dirname "$0")/.." && pwd)
suite=${DEBIAN_SUITE:-bookworm}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

[ "$(id -u)" = 0 ] || { echo "clean-room.sh: needs root for chroot" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "clean-room.sh: apt install debootstrap" >&2; exit 2; }

room=${CLEAN_ROOM:-$(mktemp -d /var/tmp/nokv-clean-room.XXXXXX)}

leave() {
    # Nothing is removed while a mount of this machine is still inside.
    for place in dev/shm dev proc; do
        if mountpoint -q "$room/$place"; then umount "$room/$place" || exit 1; fi
    done
    [ -n "${CLEAN_ROOM:-}" ] || rm -rf --one-file-system "$room"
}
trap leave EXIT
trap 'exit 130' INT TERM

if [ ! -e "$room/etc/debian_version" ]; then
    echo "== debootstrap $suite in $room"
    debootstrap --variant=minbase "$suite" "$room" "$mirror" >"$room.log" 2>&1 || {
        tail -20 "$room.log"
        exit 1
    }
    rm -f "$room.log"
fi
mkdir -p "$room/proc" "$room/dev"
mountpoint -q "$room/proc" || mount -t proc proc "$room/proc"
mountpoint -q "$room/dev" || mount --bind /dev "$room/dev"
mountpoint -q "$room/dev/shm" || mount -t tmpfs tmpfs "$room/dev/shm"

# The network as this machine has it: names, and how pip and apt reach their sources. The certificates
# get a name of their own, because the packages installed inside write the usual one.
cp -L /etc/resolv.conf /etc/hosts "$room/etc/"
[ ! -e /etc/pip.conf ] || cp -L /etc/pip.conf "$room/etc/"
certificates=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
[ ! -e "$certificates" ] || cp -L "$certificates" "$room/etc/clean-room.crt"
cp /etc/apt/apt.conf.d/*proxy* "$room/etc/apt/apt.conf.d/" 2>/dev/null || true

inside() {
    env -i HOME=/tmp LANG=C.UTF-8 TERM="${TERM:-dumb}" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        PIP_CERT=/etc/clean-room.crt ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} \
        ${https_proxy:+https_proxy="$https_proxy"} ${http_proxy:+http_proxy="$http_proxy"} \
        chroot "$room" /bin/sh -euc "$1"
}

echo "== apt-get install git make python3"
inside 'apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            git make python3 >/dev/null'

echo "== cloning $(git -C "$repository" rev-parse --short HEAD)"
rm -rf "$room/srv/nokv"
git clone -q --no-hardlinks "$repository" "$room/srv/nokv"
inside 'git config --global --replace-all safe.directory /srv/nokv'

commands=${*:-make test && make demo && make demo-down}
echo "== $commands"
inside "cd /srv/nokv && $commands"
