# What developers run; CONTRIBUTING.md says when.
export PATH := $(CURDIR)/.cache/bin:$(PATH)

GOTESTSUM = go tool gotestsum --format pkgname --format-hide-empty-pkg --
FUZZTIME ?= 60s

.PHONY: build demo test lint bench fuzz guest

build:
	go build -o bin/ktstr-vmm ./cmd/ktstr-vmm

demo: build
	bin/ktstr-vmm demo

# Installs what it lacks, then runs every test, and all of them again under the race detector. What
# was skipped, and why, is listed at the end of each run; with CI set nothing is skipped.
test:
	scripts/install-deps
	$(MAKE) --no-print-directory lint
	$(GOTESTSUM) -count=1 -timeout 20m ./...
	$(GOTESTSUM) -count=1 -timeout 30m -race ./...

lint:
	test -z "$$(gofmt -l .)"
	GOARCH=amd64 go vet ./...
	GOARCH=arm64 go vet ./...
	go tool staticcheck ./...

# Prints the figures that docs/performance.md explains.
bench: build
	go run ./bench

# Every fuzz target for $(FUZZTIME).
fuzz:
	scripts/fuzz $(FUZZTIME)

guest:
	$(MAKE) -C guest/src
