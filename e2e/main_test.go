// Package e2e_test runs the stepd binary against real servers on loopback:
// what a platform engineer, and an attacker, would do with it. The servers are
// in the packages below this folder.
package e2e_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stepd/stepd/e2e/sandbox"
	"github.com/stepd/stepd/e2e/tools"
)

// stepd is the path of the binary under test, set once by TestMain.
var stepd string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "stepd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if stepd, err = tools.Stepd(context.Background(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func startSandbox(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.Start(t.Context(), t.TempDir(), stepd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// publish releases a region's configuration, signed as it should be.
func publish(t *testing.T, s *sandbox.Sandbox, regions ...string) {
	t.Helper()
	for _, region := range regions {
		if _, err := s.Publish(t.Context(), sandbox.Config(region), sandbox.Release()); err != nil {
			t.Fatal(err)
		}
	}
}
