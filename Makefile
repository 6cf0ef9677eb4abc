# Podhold's commands. Everything works in a fresh clone with a Rust toolchain and make, as root or as a
# user with sudo: what else is needed is installed from package registries (integration/setup.sh).

.DEFAULT_GOAL := help
.PHONY: help build demo bench test conformance fuzz kills powercuts crowd soak vm vm-shell vm-short lint clean setup check-format check-lints unit crictl install

CARGO ?= cargo
RELEASE = $(shell $(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/$(shell rustc -vV | sed -n 's/^host: //p')/release
DEBUG = $(patsubst %/release,%/debug,$(RELEASE))

# Tests make namespaces, mounts and cgroups. Cargo itself runs as the caller; only what it has built
# runs as root, with a Go cache of its own, so that no file of root's gets into the caller's home.
ifneq ($(shell id -u),0)
SUDO = sudo -E env PATH="$(PATH)"
RUNNER = --config 'target."cfg(all())".runner=["sudo","-E","env","PATH=$(PATH)",\
"GOPATH=$(CURDIR)/.cache/go","GOCACHE=$(CURDIR)/.cache/go-build"]'
endif

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

build: ## Build podhold and podhold-shim, optimised and static
	@integration/setup.sh build
	$(CARGO) build --release --locked --workspace --bins
	@ls -l $(RELEASE)/podhold $(RELEASE)/podhold-shim

demo: ## Run a pod with two init and two app containers, show its logs, remove everything
	@integration/setup.sh demo
	$(CARGO) build --release --locked --workspace --bins
	$(SUDO) integration/demo/run.sh $(RELEASE)

bench: ## Measure podhold beside Debian's containerd, on a quiet machine; writes BENCHMARKS.md
	@integration/setup.sh build
	$(CARGO) build --release --locked --workspace --bins
	$(SUDO) integration/bench/run.sh --podhold $(RELEASE)

conformance: ## Run the official CRI suite (FOCUS=regex: some specs; CRITEST=path: another suite)
	@integration/setup.sh $(if $(CRITEST),demo,test)
	$(CARGO) build --locked --workspace --bins
	$(SUDO) $(DEBUG)/podhold-conformance --skips integration/conformance/skips.toml \
		--critest $(or $(CRITEST),.cache/bin/critest) $(if $(FOCUS),--focus '$(FOCUS)')

fuzz: ## Feed every parser of foreign input for SECONDS (60) each (TARGET=name: one of them)
	@integration/setup.sh fuzz
	fuzz/run.sh $(or $(SECONDS),60) $(TARGET)

kills: ## Kill the daemon COUNT (2000) times at random steps of random verbs, and judge what comes back
	@integration/setup.sh test
	$(CARGO) build --locked --workspace --bins
	$(SUDO) $(DEBUG)/podhold-kills --count $(or $(COUNT),2000)

powercuts: ## Cut the power COUNT (200) times at random moments of pulls and removals, and judge what is left (SEED)
	@integration/setup.sh test
	$(CARGO) build --locked --workspace --bins
	$(SUDO) $(DEBUG)/podhold-powercuts --count $(or $(COUNT),200) $(if $(SEED),--seed $(SEED))

crowd: ## Measure start, lists and memory with 100 to 2,000 images; prints a table for a document
	@integration/setup.sh test
	$(CARGO) build --release --locked --workspace --bins
	$(SUDO) $(RELEASE)/podhold-crowd

soak: ## Ten minutes of storm, then 20,000 pods (MINUTES, COUNT, SEED); prints tables for a document
	@integration/setup.sh test
	$(CARGO) build --release --locked --workspace --bins
	$(SUDO) $(RELEASE)/podhold-soak storm --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))
	$(SUDO) $(RELEASE)/podhold-soak cycles --count $(or $(COUNT),20000)

vm: ## Run TEST (a test file, FILE::NAME, conformance, units, reboots, short, all) in a Debian guest: cgroup v2, systemd (SYSTEM, SECURITY, DRIVER, FOCUS; RUN=pod.yaml)
	@integration/setup.sh vm
	$(CARGO) build --locked --workspace --bins
	@SUDO='$(SUDO)' SYSTEM='$(SYSTEM)' SECURITY='$(SECURITY)' DRIVER='$(DRIVER)' FOCUS='$(FOCUS)' RUN='$(RUN)' PODS='$(PODS)' \
		integration/vm/test.sh $(DEBUG) $(or $(TEST),$(if $(RUN),run,short))

vm-shell: ## A root shell in that guest
	@integration/setup.sh vm
	$(SUDO) integration/vm/run.sh $(if $(SYSTEM),--system $(SYSTEM)) --env PATH=$(DEBUG):/usr/sbin:/usr/bin:/sbin:/bin

# Where no guest can be made it says so, and is skipped: Debian 13 and an emulator are not everywhere.
vm-short:
	$(CARGO) build --locked --workspace --bins
	@SUDO='$(SUDO)' integration/vm/test.sh $(DEBUG) short --or-skip

install: ## Install programs and systemd units (DESTDIR, PREFIX=/usr/local); `make build` first
	$(if $(DESTDIR),,$(SUDO)) env DESTDIR='$(DESTDIR)' PREFIX='$(or $(PREFIX),/usr/local)' dist/install.sh $(RELEASE)

test: setup check-format check-lints unit crictl conformance vm-short ## Check and test everything

setup: ## Install what the tests need
	@integration/setup.sh test

lint: check-format check-lints ## Check formatting and lints only

check-format:
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	@echo "PASSED: formatting"

check-lints:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@said=$$($(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml 2>&1 >/dev/null) || \
		{ echo "$$said"; case $$said in *"needs to be updated"*|*"cannot update the lock file"*) \
		echo "fuzz/Cargo.lock is not what the crates need: run cargo update --workspace --manifest-path fuzz/Cargo.toml";; \
		esac; exit 1; }
	@echo "PASSED: lints"

# The programs first: black-box tests start them.
unit:
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --no-fail-fast $(RUNNER) -- --show-output

# The same build as the tests, to save a second one.
crictl:
	$(CARGO) build --locked --workspace --bins
	$(SUDO) integration/crictl/session.sh $(DEBUG)
	$(SUDO) integration/crictl/streams.sh $(DEBUG)
	@echo "PASSED: crictl sessions"

clean: ## Remove everything that was built, and what setup put into the checkout
	$(SUDO) rm -rf .cache target
