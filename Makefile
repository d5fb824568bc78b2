# Holdfast. `make` alone lists the targets.

GO      ?= go
SEEDS   ?= 20
SEED    ?= 1

.DEFAULT_GOAL := help
.PHONY: help build rig demo run test lint proto e2e sim torture soak model kills torture-controls bench bench-postfix bench-slow-disk bench-jetstream bench-million bench-drain bench-flap bench-go clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/holdfastd, bin/holdfast, bin/holdfast-bench
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/holdfastd ./cmd/holdfast ./cmd/holdfast-bench

rig: ## the build for benchmarks, with switches that the product does not have
	@mkdir -p bin/rig
	CGO_ENABLED=0 $(GO) build -trimpath -tags rig -o bin/rig/ ./cmd/holdfastd ./cmd/holdfast

demo: build ## the whole story on this machine, in under 90 s
	@bin/holdfast-bench demo --bin bin

run: build ## three nodes on this machine, left running until Ctrl-C
	@bin/holdfast-bench run --bin bin

test: ## all tests, under the race detector where it pays, and one summary
	@.ci/test

lint: ## vet, formatting, generated code, import laws
	@.ci/lint

proto: ## generate Go from the .proto files
	@.ci/proto

e2e: build ## real Postfix as sender, real Postfix, Exim and OpenSMTPD as primaries (needs root and the postfix package)
	@.ci/mailservers bin/mailservers
	$(GO) test -count=1 -tags e2e -timeout 15m ./deploy/e2e

sim: ## whole clusters in simulated time: make sim SEEDS=n [SEED=first] [DAYS=n: the primary is away that long]
	@.ci/sim $(SEEDS) $(SEED) $(DAYS)

model: ## the queue's state machine against its rules, a million commands: make model [STEPS=n]
	@.ci/model $(or $(STEPS),1000000)

torture: build ## real nodes through faults that a seed chooses (root, e2fsprogs, strace; SEED=n MINUTES=m ONLY=kind,kind NODES=5 PEER=exim:primary)
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/holdfast-torture ./deploy/torture
	@bin/holdfast-torture -seed $(SEED) -minutes $(or $(MINUTES),2) $(if $(ONLY),-only '$(ONLY)') $(if $(PEER),-peer '$(PEER)') $(if $(NODES),-nodes $(NODES))

soak: build ## a piece of at most 30 minutes of torture and simulation with seeds not yet tried; adds its counts to docs/guarantees.md
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/holdfast-torture ./deploy/torture
	@.ci/mailservers bin/mailservers
	@.ci/soak

kills: build ## 2,000 messages, 20 SIGKILLs, nothing lost (about 4 minutes)
	@bin/holdfast-bench kills --bin bin --messages 2000 --kills 20 --seed $(SEED)

torture-controls: ## each rule is broken on purpose, and a test must notice (2 minutes)
	@$(GO) run ./.ci/controls

bench-postfix: build ## three nodes against one Postfix (root; FULL=1: the whole table, ROUNDS=n, CELLS=4k:100,...)
	@bin/holdfast-bench versus-postfix --bin bin --rounds $(or $(ROUNDS),5) $(if $(FULL),--full) $(if $(CELLS),--cells $(CELLS)) --json bin/versus-postfix.json

bench-slow-disk: build rig ## the same, one session, with 5 ms more for each sync on both sides (root, gcc; ROUNDS=n)
	@bin/holdfast-bench slow-disk --bin bin/rig --rounds $(or $(ROUNDS),5) --json bin/slow-disk.json

bench-jetstream: build rig ## three nodes against a NATS JetStream of three (ROUNDS=n, CELLS=64k:20,...)
	$(GO) -C deploy/bench/jetstream build -o $(CURDIR)/bin/jetstream/ . github.com/nats-io/nats-server/v2
	@bin/holdfast-bench versus-jetstream --bin bin/rig --nats bin/jetstream --rounds $(or $(ROUNDS),3) $(if $(CELLS),--cells $(CELLS)) --json bin/versus-jetstream.json

bench-million: build ## a million messages queued on three nodes: memory, disk, restart, stalls, rate (N=n; says how much disk it needs)
	@bin/holdfast-bench million --bin bin --messages $(or $(N),1000000) --json bin/million.json

bench-drain: build ## a long queue delivered by three nodes, and by one Postfix (root; FULL=1: four cells, ROUNDS=n, CELLS=4k:5000,..., DELAY=50ms)
	@bin/holdfast-bench drain --bin bin --rounds $(or $(ROUNDS),3) $(if $(FULL),--full) $(if $(CELLS),--cells $(CELLS)) $(if $(DELAY),--delay $(DELAY)) --json bin/drain.json

bench-flap: build ## 100,000 messages delivered to a primary that comes and goes (a quarter of an hour; MESSAGES=n)
	@bin/holdfast-bench flap --bin bin $(if $(MESSAGES),--messages $(MESSAGES)) --json bin/flap.json

bench: build rig ## what a message costs three nodes: disk, wire, memory (about 4 minutes, 20 GiB free; root: on a loop device of its own)
	@bin/holdfast-bench costs --bin bin --json bin/costs.json

bench-go: ## Go benchmarks of the rooms
	$(GO) test -run '^$$' -bench . -benchtime 1s ./cluster/... ./smtpd/... ./delivery/... ./fsm/...

clean: ## remove what was built
	rm -rf bin
