# Tidemark. "make help" lists the targets.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build

GO ?= go

# What `make run` and `make demo` start.
RUN_ARGS  ?= run --dir .tidemark/pool --capacity 2G --size 10G disk1
DEMO_ARGS ?= demo

# Packages whose tests drive the built program, or mounts and volume groups of the
# host: they measure time on a machine that others use too, so a test that fails is
# run once more, and named.
ACCEPTANCE ?= ./cmd/... ./fusefs ./lvm
# Packages with tests that are long under -race: they run without it, and with it
# and -short, which makes the long ones short. Those of MEASURED measure speed or memory,
# and are run as the acceptance tests are, without it.
LONG       ?= ./qcow2
MEASURED   ?= ./nbd ./bench
TEST_FLAGS ?=
BENCH_FLAGS ?=

# What runs once more in a build that checks the order of locks, and the builds
# that must go on to compile although nothing ships with them.
LOCKED     ?= ./qcow2 ./internal/lockorder

# The crash lab: more than 100,000 states in make test, and as many as there is
# time for in make soak.
LAB        := ./qcow2/crashtest
SOAK       ?= 10m
TAGS       := lockcheck mutants crashlab

# The library is portable, the daemon is not.
PORTABLE := ./qcow2/... ./nbd/...

# The tools are a module of their own. They are built once for each state of it,
# because the linter takes minutes to compile.
TOOLS     := .cache/bin/$(shell cat tools/go.mod tools/go.sum | cksum | cut -d' ' -f1)
GOTESTSUM := $(TOOLS)/gotestsum
GOLANGCI  := $(TOOLS)/golangci-lint
BENCHSTAT := $(TOOLS)/benchstat

.PHONY: packages build run demo test soak mutants lint fmt deps bench bench-full bench-doc bench-engine bench-spm clean help need

# Without cgo the program is static, and can tell the kernel something for all of
# its threads (fusefs.SetIOFlusher).
build: need ## build bin/tidemark
	CGO_ENABLED=0 $(GO) build -o bin/tidemark ./cmd/tidemark

run: build packages ## a 10 GiB disk in a 2 GiB pool under .tidemark/, served until Ctrl-C
	exec bin/tidemark $(RUN_ARGS)

demo: build packages ## the same unattended: write, watch it grow, read back, check
	exec bin/tidemark $(DEMO_ARGS)

test: need deps $(GOTESTSUM) ## all tests; what had to be skipped is named at the end
	@rc=0
	all=$$($(GO) list ./...)
	slow=$$($(GO) list $(ACCEPTANCE))
	fast=$$(comm -23 <(sort <<<"$$all") <({ echo "$$slow"; $(GO) list $(LAB); } | sort))
	rm -f .cache/test-*.json
	$(GOTESTSUM) --jsonfile .cache/test-1.json --format pkgname -- -race -short -count=1 -timeout 25m $(TEST_FLAGS) $$fast || rc=1
	$(GOTESTSUM) --jsonfile .cache/test-2.json --format pkgname -- -tags lockcheck -short -count=1 -timeout 25m $(TEST_FLAGS) $(LOCKED) || rc=1
	$(GOTESTSUM) --jsonfile .cache/test-3.json --format pkgname -- -tags crashlab -count=1 -timeout 30m $(TEST_FLAGS) $(LAB) || rc=1
	$(GOTESTSUM) --jsonfile .cache/test-4.json --format pkgname -- -count=1 -timeout 30m $(TEST_FLAGS) $(LONG) || rc=1
	$(GOTESTSUM) --jsonfile .cache/test-5.json --format pkgname --rerun-fails=1 --rerun-fails-max-failures=5 --packages="$$(echo $$slow $(MEASURED))" -- -p 1 -count=1 -timeout 30m $(TEST_FLAGS) || rc=1
	tools/measured .cache/test-*.json || rc=1
	tools/skips .cache/test-*.json || rc=1
	exit $$rc

soak: need ## the crash lab, a crowd of clients in each kind of pool, and power cuts, for as long as SOAK says each (10m)
	TIDEMARK_SOAK=$(SOAK) $(GO) test -tags crashlab -count=1 -timeout 0 -v -run '^TestSoak$$' $(LAB)
	TIDEMARK_SOAK=$(SOAK) $(GO) test -count=1 -timeout 0 -v -run '^(TestCrowd|TestSnapshotsComeAndGo|TestPowerCutOfLive|TestVDSMServerKilledAtSteps)' ./cmd/tidemark

mutants: need ## engines with a mistake each: every test and the crash lab; writes docs/reliability.md
	TIDEMARK_MUTANTS=all $(GO) test -count=1 -timeout 2h -v -run '^TestMutants$$' $(LAB) -update

lint: need $(GOLANGCI) ## format, vet (other systems and tags too), import law, go.mod
	@rc=0
	bad=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')) || rc=1
	[ -z "$$bad" ] || { echo "gofmt -w is needed for:" $$bad; rc=1; }
	$(GO) vet ./... || rc=1
	for tag in $(TAGS); do
	  $(GO) vet -tags $$tag ./... || { echo "go vet -tags $$tag failed"; rc=1; }
	done
	portable=$$($(GO) list $(PORTABLE) 2>/dev/null || true)
	for target in darwin/arm64 windows/amd64 linux/arm64 linux/386; do
	  [ -z "$$portable" ] || GOOS=$${target%/*} GOARCH=$${target#*/} $(GO) vet $$portable || { echo "go vet for $$target failed"; rc=1; }
	done
	$(GOLANGCI) run ./... || rc=1
	$(GO) mod tidy -diff || { echo "go mod tidy is needed"; rc=1; }
	exit $$rc

fmt: ## gofmt everything
	gofmt -w $$(git ls-files --cached --others --exclude-standard '*.go')

deps: ## install the Debian packages that tests and demonstrations use (as root), or name them
	@tools/deps guest

packages:
	@tools/deps

# What is compared with the peers, and how cost grows, in bench/compare: a quarter of
# an hour, or until it is known well. RUN names a run; one that was stopped goes on where it
# was, and another commit is another run. Goals that are missed are printed, and make bench
# fails only with BENCH_FLAGS=-strict.
RUN ?= 1
bench: build packages ## compare with QEMU and nbdkit: 3 rounds and the curves, a quarter of an hour
	$(GO) run ./bench/compare -rounds 3 -time 1s -out .cache/bench -run-id $(RUN) -resume $(BENCH_FLAGS)

bench-full: build packages ## the same with 10 rounds of 5 s
	$(GO) run ./bench/compare -rounds 10 -time 5s -out .cache/bench-full -run-id $(RUN) -resume $(BENCH_FLAGS)

bench-doc: ## docs/performance.md and its chart, of the runs that make bench has kept
	$(GO) run ./bench/compare -render -out .cache/bench -doc docs/performance.md

bench-engine: need $(BENCHSTAT) ## benchmarks of the engine by itself
	mkdir -p .cache
	$(GO) test -run '^$$' -bench . -count 6 ./bench | tee .cache/bench.txt
	$(BENCHSTAT) .cache/bench.txt

bench-spm: build packages ## the pool manager: verbs and extensions, goals; writes docs/performance-spm.md
	$(GO) run ./bench/spm -out .cache/bench-spm -doc docs/performance-spm.md $(BENCH_FLAGS)

clean: ## remove what was built; the pool under .tidemark/ stays
	rm -rf bin .cache

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

need:
	@tools/need

$(TOOLS)/%: | need
	@echo "building $* (once)"
	@mkdir -p $(TOOLS)
	@cd tools && $(GO) build -o ../$@ "$$($(GO) list -f '{{.ImportPath}}' tool | grep '/$*$$')"
