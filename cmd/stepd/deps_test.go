package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestNoServersInTheProduct keeps servers, storage and command packages of
// registries, Sigstore and Kubernetes out of the binary; they belong to e2e/.
func TestNoServersInTheProduct(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("cannot list the dependencies: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d dependencies were listed", len(deps))
	}
	denied := []struct{ prefix, reason string }{
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
	for _, dep := range deps {
		for _, d := range denied {
			if dep == d.prefix || strings.HasPrefix(dep, d.prefix+"/") {
				t.Errorf("the binary depends on %s: %s", dep, d.reason)
			}
		}
	}
}
