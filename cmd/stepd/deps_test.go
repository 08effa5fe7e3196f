package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// denial says why a program must not depend on packages below a path.
type denial struct{ prefix, reason string }

func (d denial) matches(dep string) bool {
	return dep == d.prefix || strings.HasPrefix(dep, d.prefix+"/")
}

// TestNoServersInTheProduct keeps servers, storage and command packages of
// registries, Sigstore and Kubernetes out of stepd's programs; they belong to
// e2e/. It also keeps out of stepd itself what only stepd-serve needs: a
// start-up that each run and verify would pay for.
func TestNoServersInTheProduct(t *testing.T) {
	denied := []denial{
		{"github.com/distribution/distribution", "a registry server"},
		{"github.com/google/go-containerregistry/pkg/registry", "a registry server"},
		{"github.com/google/go-containerregistry/cmd", "a command"},
		{"github.com/sigstore/cosign", "cosign is a command"},
		{"github.com/sigstore/fulcio", "a certificate authority"},
		{"github.com/sigstore/rekor/cmd", "a command"},
		{"github.com/sigstore/rekor/pkg/api", "a transparency log server"},
		{"github.com/sigstore/rekor/pkg/log", "a transparency log server"},
		{"github.com/sigstore/rekor/pkg/sharding", "a transparency log server"},
		{"github.com/sigstore/rekor/pkg/storage", "a transparency log's storage"},
		{"github.com/sigstore/rekor/pkg/generated/restapi", "a transparency log server"},
		{"github.com/sigstore/rekor-tiles/v2/internal/server", "a transparency log server"},
		{"github.com/sigstore/rekor-tiles/v2/cmd", "a command"},
		{"github.com/sigstore/timestamp-authority/v2/cmd", "a command"},
		{"github.com/sigstore/timestamp-authority/v2/pkg/api", "a timestamp authority"},
		{"github.com/sigstore/timestamp-authority/v2/pkg/generated/restapi", "a timestamp authority"},
		{"github.com/google/trillian", "a log's storage"},
		{"github.com/transparency-dev/tessera", "a log's storage"},
		{"github.com/dgraph-io/badger", "a database"},
		{"go.etcd.io/etcd", "a database"},
		{"cloud.google.com/go/storage", "object storage"},
		{"github.com/aws/aws-sdk-go", "object storage"},
		{"gocloud.dev", "object storage"},
		{"k8s.io/apiserver", "a Kubernetes server"},
		{"k8s.io/kubernetes", "Kubernetes itself"},
		{"k8s.io/kubectl", "a command"},
		{"k8s.io/apiextensions-apiserver/pkg/apiserver", "a Kubernetes server"},
		{"sigs.k8s.io/controller-runtime", "a controller framework"},
		{"github.com/argoproj", "Argo CD"},
		{"helm.sh/helm", "Helm is linked into stepd-helm"},
		{"github.com/stepd/stepd/e2e", "the end-to-end module"},
	}
	const serving = "linked into stepd-serve"
	onlyServing := []denial{
		{"github.com/stepd/stepd/cmd/internal/serving", serving},
		{"github.com/stepd/stepd/internal/stepmetrics", serving},
		{"github.com/stepd/stepd/kargo/admission", serving},
		{"github.com/stepd/stepd/kargo/cluster", serving},
		{"github.com/stepd/stepd/kargo/sidecar", serving},
		{"github.com/stepd/stepd/kargo/wire", serving},
		{"github.com/stepd/stepd/proto/gateway", serving},
		{"github.com/stepd/stepd/runner/rpc/serve", serving},
		{"github.com/prometheus", serving},
		{"go.opentelemetry.io/contrib", serving},
		{"go.opentelemetry.io/otel/exporters", serving},
		{"go.opentelemetry.io/otel/sdk", serving},
		{"go.opentelemetry.io/proto", serving},
		{"k8s.io/api/admission", serving},
		{"k8s.io/client-go/dynamic", serving},
	}
	for program, denied := range map[string][]denial{
		"stepd":       slices.Concat(denied, onlyServing),
		"stepd-serve": denied,
	} {
		out, err := exec.Command("go", "list", "-deps", "../"+program).Output()
		if err != nil {
			t.Fatalf("cannot list the dependencies of %s: %v", program, err)
		}
		deps := strings.Fields(string(out))
		if len(deps) < 100 {
			t.Fatalf("only %d dependencies of %s were listed", len(deps), program)
		}
		for _, d := range denied {
			if i := slices.IndexFunc(deps, d.matches); i >= 0 {
				t.Errorf("%s depends on %s: %s", program, deps[i], d.reason)
			}
		}
		if program == "stepd" {
			continue
		}
		for _, d := range onlyServing {
			if !slices.ContainsFunc(deps, d.matches) {
				t.Errorf("nothing depends on %s: it need not be denied to stepd", d.prefix)
			}
		}
	}
}
