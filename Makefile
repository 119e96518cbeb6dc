# What developers run; CONTRIBUTING.md says when.
export PATH := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ktstr-vmm/bin:$(PATH)

FUZZTIME ?= 60s

.PHONY: build release package demo test setup-linux setup-release linux-test lint
.PHONY: bench bench-boot bench-suite bench-control fuzz guest

build:
	go build -o bin/ktstr-vmm ./cmd/ktstr-vmm

# Static binaries for linux/amd64 and linux/arm64, and their checksums, in bin/release: the same bytes wherever they are
# built.
release:
	scripts/release bin/release

# These, and packages, an archive, SBOMs and checksums of them, in bin/dist. The first time, it compiles goreleaser.
package:
	scripts/package

# Sets up what is missing and boots the embedded guest.
demo: build
	scripts/install-deps demo
	bin/ktstr-vmm demo

# Sets up what is missing and runs every test of every tier: on this machine, again under the race
# detector, and in a Linux that QEMU emulates what needs a KVM that this machine does not have. The
# last lines say how many ran where; with CI set, nothing may be left out.
test:
	scripts/install-deps
	$(MAKE) --no-print-directory -j2 setup-linux setup-release
	$(MAKE) --no-print-directory lint
	scripts/test

# What the tests need that takes long the first time. One waits for the network while the other compiles.
setup-linux:
	scripts/fetch-linux
	scripts/build-linux
setup-release:
	scripts/release-tools

# The Linux suite alone.
linux-test: setup-linux
	scripts/guest-tests linux

# Lines have at most 120 characters, but for what Markdown has of tables and of a program's output.
lint: too_long := ^[^|].{120,}
lint:
	test -z "$$(gofmt -l .)"
	! LC_ALL=C.UTF-8 git grep -nP '$(too_long)' -- '*.go' '*.c' '*.h' '*.S' '*Makefile' scripts \
		configs/ci configs/k8s configs/slurm
	! git ls-files '*.md' | xargs perl -CSD -ne '$$fence = !$$fence if /^```/; \
		print "$$ARGV:$$.:$$_" if !$$fence && /$(too_long)/; close ARGV if eof' | grep .
	GOARCH=amd64 go vet ./...
	GOARCH=arm64 go vet ./...
	go vet -tags linuxbed ./test/...
	go vet -tags manpages ./cmd/...
	go tool staticcheck ./...
	for module in schemas browser; do \
		go -C test/$$module vet ./... && (cd test/$$module && "$$(cd ../.. && go tool -n staticcheck)" ./...) || exit; \
	done

# Prints the figures that docs/performance.md explains.
bench: build
	go run ./bench

# The same for the boot of a Linux guest, beside gokvm's and QEMU's.
bench-boot:
	scripts/fetch-linux
	scripts/bench-boot

# The same for suites of 200 runs, on the back end that is there.
bench-suite: build
	go run ./bench suite

# What clients of a run's control socket do to its speed, on the back end that is there.
bench-control: build
	go run ./bench control

# Every fuzz target for $(FUZZTIME).
fuzz:
	scripts/fuzz $(FUZZTIME)

# What runs in guests, from its sources, into the packages that carry it.
guest:
	$(MAKE) -C guest/src
	$(MAKE) -C pkg/vm/qemu/firmware
	go run ./guest/pack guest
