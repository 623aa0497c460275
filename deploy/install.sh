#!/bin/sh
# Installs featherfed on a Raspberry Pi (64-bit OS) or any 64-bit Debian: see docs/raspberry-pi.md.
set -eu
umask 022 # the service's user must be able to read what root installs

usage() {
    cat <<'TEXT'
usage: sudo sh deploy/install.sh [OPTIONS]

  --role ROLE     client (default): trains on this device's data
                  follow: only keeps the newest model for inference
                  server: serves a run (needs a bigger machine)
  --credentials DIR
                  the folder that `featherfed certs client` made for this device, to install;
                  for a client or follower. Run again with a new one to replace it
  --from PATH     a wheel or a checkout to install; default: the checkout this script lies in
  --prefix DIR    where to (default /opt/featherfed; with --user ~/.local/share/featherfed)
  --no-service    install the program only: no system user, no settings, no service
  --user          the same without root
  --uninstall     remove program and services; settings, state and data stay
  --purge         remove those too, but never /srv/featherfed
  --help

Run it again to bring the program up to date; settings are kept.
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

role=client
from=
credentials=
prefix=${PREFIX:-}
service=yes
user=no
action=install
while [ $# -gt 0 ]; do
    case $1 in
        --role | --from | --prefix | --credentials)
            [ $# -ge 2 ] || die "$1 needs a value; see --help"
            case $1 in
                --role) role=$2 ;;
                --from) from=$2 ;;
                --credentials) credentials=$2 ;;
                --prefix) prefix=$2 ;;
            esac
            shift
            ;;
        --no-service) service=no ;;
        --user) user=yes service=no ;;
        --uninstall) action=uninstall ;;
        --purge) action=purge ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done
case $role in
    client | follow) extras=edge,images ;;
    server) extras=demo ;;
    *) die "--role is client, follow or server, not $role" ;;
esac
if [ "$user" = yes ]; then
    prefix=${prefix:-$HOME/.local/share/featherfed}
else
    prefix=${prefix:-/opt/featherfed}
fi
case $prefix in
    *[!A-Za-z0-9/._-]*) die "--prefix $prefix: use letters, digits and /._- only" ;;
    /*) ;;
    *) prefix=$PWD/$prefix ;;
esac
if [ -n "$credentials" ]; then
    [ "$role" != server ] || die "--credentials are a device's; a server's are made in /etc/featherfed/certs"
    [ "$service" = yes ] || die "--credentials are installed for the service; give join their path instead"
    for file in ca.pem token; do
        [ -r "$credentials/$file" ] || die "--credentials $credentials: no $file in it that can be read; \`featherfed certs client\` makes the folder"
    done
fi
here=$(cd "$(dirname "$0")" && pwd)
lock=$here/constraints.txt # what a client needs, in exact versions with hashes: `make lock`
stage=${DESTDIR:-} # for packagers and tests: installs settings and services under it, starts nothing
etc=$stage/etc/featherfed
units=$stage/etc/systemd/system
mark=$prefix/.featherfed

systemd_runs() { [ -z "$stage" ] && [ -d /run/systemd/system ]; }

check_machine() {
    userland=$(dpkg --print-architecture 2>/dev/null || true)
    case $(uname -m):$userland in
        aarch64:armhf | aarch64:armel | x86_64:i386)
            die "this is a 32-bit system under a 64-bit kernel, and LiteRT has no 32-bit build; install the 64-bit Raspberry Pi OS (Raspberry Pi Imager: 'Raspberry Pi OS (64-bit)'; runs on Pi 3, 4, 5, 400, 500 and Zero 2 W)"
            ;;
        aarch64:* | x86_64:*) ;;
        armv6l:*)
            die "this is a 32-bit system on a processor that may be 32-bit itself (Pi 1, Zero, Zero W), and LiteRT has no 32-bit build; if the device is a Pi 3 or newer or a Zero 2 W, install the 64-bit Raspberry Pi OS"
            ;;
        armv*:* | i?86:*)
            die "this is a 32-bit system, and LiteRT has no 32-bit build; install the 64-bit Raspberry Pi OS (runs on Pi 3, 4, 5, 400, 500 and Zero 2 W)"
            ;;
        *) die "no LiteRT build for $(uname -m); needs aarch64 or x86_64" ;;
    esac
}

is_supported_python() { # 64-bit, of a version that featherfed runs on
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import struct, sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14) and struct.calcsize("P") == 8))'
}

find_python() {
    for python in python3 python3.13 python3.12 python3.11; do
        if is_supported_python "$python"; then return; fi
    done
    die "needs a 64-bit Python 3.11 to 3.13; Raspberry Pi OS has one since bookworm (2023)"
}

check_venv() {
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    if [ "$user" = yes ] || ! command -v apt-get >/dev/null 2>&1; then
        die "$python cannot make virtual environments; sudo apt install python3-venv"
    fi
    say "installing python3-venv"
    apt-get -q update && apt-get -q install -y python3-venv
}

check_target() {
    [ -e "$prefix" ] && [ ! -e "$mark" ] && [ -n "$(ls -A "$prefix")" ] &&
        die "$prefix is not empty and not ours; choose another --prefix"
    mkdir -p "$prefix" || die "cannot write to $prefix: use sudo, or --user to install for you alone"
    : >"$mark" || die "cannot write to $prefix: use sudo, or --user to install for you alone"
}

install_program() {
    if [ -z "$from" ] && [ -f "$here/../pyproject.toml" ]; then from=$(dirname "$here"); fi
    if [ -n "$from" ]; then
        [ -e "$from" ] || die "--from $from: there is no such file or folder"
        from=$(cd "$(dirname "$from")" && pwd)/$(basename "$from")
    fi
    if [ -d "$from" ]; then # built in a copy: a build leaves files behind, and would pick up old ones
        copy=$(mktemp -d)
        trap 'rm -rf "$copy"' EXIT
        tar -C "$from" --exclude='./.*' --exclude=./build --exclude=./runs -cf - . |
            tar -C "$copy" -xf -
        from=$copy
    fi
    say "installing featherfed[$extras] with $($python --version) into $prefix (some minutes)"
    "$python" -m venv "$prefix"
    # Forced: the wheel of a changed checkout may have the version that is installed already.
    if [ "$role" != server ] && [ -f "$lock" ]; then
        "$prefix/bin/pip" install --quiet --require-hashes --requirement "$lock"
        "$prefix/bin/pip" install --quiet --no-deps --no-build-isolation --force-reinstall "${from:-featherfed}"
    else
        if [ "$role" != server ]; then say "no constraints.txt beside this script: packages are not checked by hashes"; fi
        if [ -n "$from" ]; then
            "$prefix/bin/pip" install --quiet --no-deps --force-reinstall "$from"
        fi
        "$prefix/bin/pip" install --quiet --upgrade "${from:-featherfed}[$extras]"
    fi
    "$prefix/bin/featherfed" version
}

write_settings() { # FILE: writes standard input to FILE, unless it exists
    if [ -e "$1" ]; then
        cat >/dev/null
        say "kept $1"
    else
        cat >"$1"
        say "wrote $1"
    fi
}

install_credentials() { # ENV_FILE: only the service's user can read them
    rm -rf "$etc/credentials"
    mkdir -m 0700 "$etc/credentials"
    for file in ca.pem token client.pem client-key.pem; do
        if [ -e "$credentials/$file" ]; then
            install -m 0600 "$credentials/$file" "$etc/credentials/$file"
        fi
    done
    if [ -z "$stage" ]; then chown -R featherfed: "$etc/credentials"; fi
    # Appended: the last value in the file counts, and the rest is kept.
    set_last "$1" FEATHERFED_CREDENTIALS /etc/featherfed/credentials
    if [ "$role" = client ]; then
        set_last "$1" JOIN_NAME "$(sed 's/[.][^.]*$//' "$credentials/token")"
    fi
    say "installed the credentials of $credentials; delete that copy"
}

set_last() { # FILE NAME VALUE: appends NAME=VALUE, unless it is the last one already
    if [ "$(sed -n "s/^$2=//p" "$1" | tail -n 1)" != "$3" ]; then printf '%s=%s\n' "$2" "$3" >>"$1"; fi
}

install_service() {
    if [ -z "$stage" ] && ! id featherfed >/dev/null 2>&1; then
        useradd --system --home-dir /var/lib/featherfed --shell /usr/sbin/nologin featherfed
    fi
    mkdir -p "$etc" "$units" "$stage/srv/featherfed"
    if [ -n "${SUDO_USER:-}" ] && [ -z "$stage" ]; then
        chown "$SUDO_USER" /srv/featherfed # the user can then copy data there without root
    fi
    case $role in
        client)
            suffix=$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')
            write_settings "$etc/client.env" <<TEXT
# Settings of featherfed-client.service; after a change: sudo systemctl restart featherfed-client

# HOST:PORT of the server; empty: it is found in the local network.
JOIN_ADDRESS=

# A folder of images by class, or an .npz with images and labels.
JOIN_DATA=/srv/featherfed/data

# Must be another one on every device.
JOIN_NAME=$(uname -n | tr -cs 'A-Za-z0-9._\n-' '-')-$suffix

# More of \`featherfed join --help\`, such as: --pause-above 70 --pause-on-battery --threads 2, or
# --insecure for a server without credentials.
JOIN_OPTIONS=

# What \`install.sh --credentials DIR\` has installed; then JOIN_NAME is theirs.
FEATHERFED_CREDENTIALS=
TEXT
            ;;
        follow)
            write_settings "$etc/follow.env" <<'TEXT'
# Settings of featherfed-follow.service; after a change: sudo systemctl restart featherfed-follow

# HOST:PORT of the server; empty: it is found in the local network.
FOLLOW_ADDRESS=

# More of `featherfed follow --help`, such as --insecure for a server without credentials.
FOLLOW_OPTIONS=

# What `install.sh --credentials DIR` has installed.
FEATHERFED_CREDENTIALS=
TEXT
            ;;
        server)
            write_settings "$etc/run.toml" <"$here/../examples/run.toml"
            ;;
    esac
    if [ -n "$credentials" ]; then install_credentials "$etc/$role.env"; fi
    if [ "$role" = server ] && [ ! -e "$etc/certs" ]; then # the server's user owns it, and makes certificates in it
        mkdir -m 0700 "$etc/certs"
        if [ -z "$stage" ]; then chown featherfed: "$etc/certs"; fi
    fi
    sed "s|/opt/featherfed|$prefix|g" "$here/featherfed-$role.service" \
        >"$units/featherfed-$role.service"
    if systemd_runs; then
        systemctl daemon-reload
        systemctl enable "featherfed-$role"
        systemctl try-restart "featherfed-$role" # restarts a running service with the new program
    fi
    case $role in
        client) say "now put data into /srv/featherfed/data, then: sudo systemctl start featherfed-client" ;;
        follow) say "now: sudo systemctl start featherfed-follow; the model will be in /var/lib/featherfed-follow" ;;
        server) say "now edit /etc/featherfed/run.toml (host, dataset, credentials), make /etc/featherfed/certs (docs/raspberry-pi.md), then: sudo systemctl start featherfed-server" ;;
    esac
    say "and watch it: journalctl -fu featherfed-$role"
}

uninstall() {
    [ -e "$mark" ] || die "$prefix holds no installation of ours; give its --prefix"
    if [ "$service" = yes ]; then
        for role in client follow server; do
            [ -e "$units/featherfed-$role.service" ] || continue
            if systemd_runs; then systemctl disable --now "featherfed-$role"; fi
            rm "$units/featherfed-$role.service"
        done
        if systemd_runs; then systemctl daemon-reload; fi
    fi
    rm -rf "$prefix"
    say "removed $prefix"
    if [ "$action" = purge ] && [ "$service" = yes ]; then
        rm -rf "$etc" "$stage/var/lib/featherfed" "$stage/var/lib/featherfed-follow" \
            "$stage/var/lib/featherfed-server"
        if [ -z "$stage" ] && id featherfed >/dev/null 2>&1; then userdel featherfed; fi
        say "removed settings and state; /srv/featherfed is yours to delete"
    fi
}

if [ "$service" = yes ] && [ -z "$stage" ] && [ "$(id -u)" -ne 0 ]; then
    die "needs root for the service: use sudo, or --user to install the program for you alone"
fi
if [ "$action" != install ]; then
    uninstall
    exit 0
fi
check_machine
find_python
check_venv
check_target
install_program
if [ "$service" = yes ]; then
    install_service
else
    say "run it: $prefix/bin/featherfed join --data FOLDER"
fi
