# What developers run; CONTRIBUTING.md says when.
export PATH := $(CURDIR)/.cache/bin:$(PATH)

GOTESTSUM = go tool gotestsum --format pkgname --format-hide-empty-pkg --
FUZZTIME ?= 60s

.PHONY: build demo test linux-test lint bench bench-boot fuzz guest

build:
	go build -o bin/ktstr-vmm ./cmd/ktstr-vmm

demo: build
	bin/ktstr-vmm demo

# Installs what it lacks, then runs every test, all but the Linux suite again under the race detector,
# and the Linux suite. What was skipped, and why, is listed at the end of each run; with CI set
# nothing is skipped.
test:
	scripts/install-deps
	$(MAKE) --no-print-directory lint
	$(GOTESTSUM) -count=1 -timeout 20m ./...
	$(GOTESTSUM) -count=1 -timeout 30m -race ./...
	$(MAKE) --no-print-directory linux-test

# The Linux suite on kernels 6.1 and 6.12: on this machine's KVM where doctor finds it fast enough for
# Linux, else in a Linux that QEMU emulates.
linux-test:
	scripts/fetch-linux
	scripts/linux-test

lint:
	test -z "$$(gofmt -l .)"
	GOARCH=amd64 go vet ./...
	GOARCH=arm64 go vet ./...
	go vet -tags linuxbed ./test/...
	go tool staticcheck ./...

# Prints the figures that docs/performance.md explains.
bench: build
	go run ./bench

# The same for the boot of a Linux guest, beside gokvm's and QEMU's.
bench-boot:
	scripts/fetch-linux
	scripts/bench-boot

# Every fuzz target for $(FUZZTIME).
fuzz:
	scripts/fuzz $(FUZZTIME)

# What runs in guests, from its sources, into the packages that carry it.
guest:
	$(MAKE) -C guest/src
	$(MAKE) -C pkg/vm/qemu/firmware
	go run ./guest/pack guest
