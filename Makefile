# The two commands a newcomer needs are `make demo` and `make test`.
# .ci/run runs check, test and e2e, in that order.

GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.1.4
FUZZTIME      ?= 10m

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

.PHONY: build
build: ## build bin/stepd, bin/stepd-serve for its verbs serve and webhook, and bin/stepd-helm for the Helm steps
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/stepd ./cmd/stepd-serve ./cmd/stepd-helm # static: a fifth less memory, and no libc

.PHONY: image
image: ## the container image for amd64 and arm64 in bin/image, as an OCI layout; needs no container engine
	rm -rf bin/image
	go run -C image . -output ../bin/image

.PHONY: demo
demo: ## sign, verify, promote two regions at once, and see four attacks refused; all on loopback
	@bash e2e/demo.sh

.PHONY: test
test: ## unit tests, with the race detector
	go test -race ./...

.PHONY: check
check: build ## what must hold before anything lands: format, vet, lint, fresh generated files, agreement with Kargo
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these"; exit 1; }
	go vet ./...
	cd e2e && go vet ./...
	cd image && go vet ./...
	go run $(GOLANGCI_LINT) run ./...
	go mod tidy -diff
	cd e2e && go mod tidy -diff
	cd image && go mod tidy -diff
	cd e2e/servers/kube && go mod tidy -diff
	cd e2e/servers/tsa && go mod tidy -diff
	@bash scripts/check-generated.sh
	@bash scripts/check-golden.sh
	@bash scripts/check-vulnerabilities.sh $(GOVULNCHECK)

.PHONY: generate
generate: ## regenerate every generated file
	go generate ./...

.PHONY: e2e
e2e: ## end to end, hermetic: a real registry, git http-backend, cosign, Sigstore and Kubernetes API server on loopback
	cd e2e && go test -count=1 -timeout 40m ./... # never cached: what it tests is not in its own module; the first time it builds the servers

.PHONY: e2e-kind
e2e-kind: ## the cluster suite against real Kargo and Argo CD in a kind cluster; needs Docker, kind, helm, kubectl and the internet
	@bash e2e/kargo/kind.sh

.PHONY: bench
bench: ## benchmarks, each printed as a ratio against a named baseline of the same run
	@bash e2e/bench.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 10m) each
	@bash scripts/fuzz.sh $(FUZZTIME)
