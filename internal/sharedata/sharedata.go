// Package sharedata finds, for tests only, the data that lives beside the
// checkout rather than in it: Kargo's own CRDs, step schemas and golden
// answers, and signed artifacts. It reads nothing itself.
package sharedata

import (
	"os"
	"path/filepath"
	"testing"
)

// Path returns the absolute path of elem below the data folder, which is
// $STEPD_SHARED or the folder named shared beside the checkout.
//
// Where the folder is absent the test is skipped, except that under CI=true it
// fails: there the data must be present.
func Path(tb testing.TB, elem ...string) string {
	tb.Helper()
	root := os.Getenv("STEPD_SHARED")
	if root == "" {
		root = filepath.Join(checkout(tb), "..", "shared")
	}
	p := filepath.Join(append([]string{root}, elem...)...)
	if _, err := os.Stat(p); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatalf("test data is missing under CI=true: %v", err)
		}
		tb.Skipf("test data is not here (set STEPD_SHARED): %v", err)
	}
	return p
}

// checkout walks up from the working directory to the folder that holds .ci,
// which is the root of the checkout for every module in it.
func checkout(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, ".ci")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			tb.Fatalf("no checkout root (a folder with .ci) above %s", dir)
		}
	}
}
