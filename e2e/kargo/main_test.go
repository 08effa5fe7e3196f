package kargo_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stepd/stepd/internal/sharedata"
)

// within is how long anything may take that a test waits for.
const within = 2 * time.Minute

// shared is what the tests share: one cluster, started by the first that needs
// it.
var shared struct {
	once    sync.Once
	dir     string
	cluster *cluster
	err     error
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "stepd-e2e-kargo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared.dir = dir
	defer func() {
		if shared.cluster != nil {
			shared.cluster.close()
		}
	}()
	return m.Run()
}

// theCluster returns the cluster that the tests run in.
func theCluster(t *testing.T) *cluster {
	t.Helper()
	crds := ""
	if os.Getenv("STEPD_E2E_KUBECONFIG") == "" {
		sameAsKargo(t)
		crds = sharedata.Path(t, "kargo", "crds")
	}
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute) // a clean clone builds the servers
		defer cancel()
		shared.cluster, shared.err = startCluster(ctx, shared.dir, crds)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.cluster
}

// eventually waits until check answers true, and fails the test if it does not
// in time. report says what there is instead.
func eventually(t *testing.T, what string, check func() bool, report func() string) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !check() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("no %s within %s: %s", what, within, report())
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
