#!/bin/sh
# Installs what the benchmark needs into the checkout's .cache/bench, and the few programs it calls. The
# peers, Debian's containerd and podman, are downloaded and unpacked there, not installed: so the machine gets
# no system service and no network configuration of theirs. Does nothing that is done already. Runs as root, or as a user with sudo.
set -eu

cd "$(dirname "$0")/../.."
"$PWD/integration/setup.sh" build
here="$PWD/integration/bench"
cache="$PWD/.cache/bench"
# libseccomp2 is what runc links with.
packages="containernetworking-plugins docker-registry busybox-static iproute2 util-linux e2fsprogs python3-venv
	libseccomp2"
# With podman come what it calls and libraries that few machines have.
peers="containerd runc podman conmon netavark aardvark-dns catatonit libassuan0 libglib2.0-0 libgpgme11 libsubid4
	libsemanage2 libyajl2"

say() { echo "bench set-up: $*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

missing=""
for package in $packages; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
		missing="$missing $package"
done
if [ -n "$missing" ]; then
	say "installing Debian packages:$missing"
	as_root apt-get update -qq
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

mkdir -p "$cache"
if [ ! -x "$cache/peer/usr/bin/containerd" ] || [ ! -x "$cache/peer/usr/bin/podman" ]; then
	say "unpacking Debian's containerd, podman and what they call into .cache/bench/peer"
	debs="$(mktemp -d)"
	chmod 755 "$debs"
	# shellcheck disable=SC2086
	(cd "$debs" && { apt-get download -qq $peers || { as_root apt-get update -qq && apt-get download -qq $peers; }; })
	rm -rf "$cache/peer"
	for deb in "$debs"/*.deb; do dpkg -x "$deb" "$cache/peer"; done
	basename -a "$debs"/*.deb >"$cache/peer/versions"
	rm -r "$debs"
fi

if ! "$cache/venv/bin/python" -c 'import grpc_tools' 2>/dev/null; then
	say "installing grpcio-tools from PyPI into .cache/bench/venv"
	python3 -m venv "$cache/venv"
	"$cache/venv/bin/pip" install --quiet grpcio grpcio-tools
fi

mkdir -p "$cache/bin"
gcc -O2 -Wall -o "$cache/bin/floor" "$here/floor.c"
gcc -O2 -Wall -static -o "$cache/bin/pause" "$here/pause.c"
gcc -O2 -Wall -static -o "$cache/bin/writer" "$here/writer.c"
say "done"
