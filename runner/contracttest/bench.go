package contracttest

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stepd/stepd/steps"
)

// Benchmark measures what a call costs when the step does next to nothing:
// mean, median and 99th percentile.
func Benchmark(b *testing.B, s Subject) {
	reg := s.Lookup(b, "contract-config")
	sc := s.NewContext(b)
	sc.Config = map[string]any{"name": "a"}
	call := func() {
		if r, err := reg.New(steps.Capabilities{}).Run(context.Background(), sc); err != nil || r.Status != steps.Succeeded {
			b.Fatalf("got %q, %v", r.Status, err)
		}
	}
	call() // whatever has to be started is
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		call()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}

// Crowd makes n calls at once, with an output of a mebibyte for every
// hundredth, and returns by how many bytes the live heap had grown at most.
func Crowd(t testing.TB, s Subject, n int) (growth uint64) {
	t.Helper()
	small, large := s.Lookup(t, "contract-config"), s.Lookup(t, "contract-large")
	before := heap()
	ctx, cancel := context.WithTimeout(t.Context(), 4*deadline)
	defer cancel()
	var wg sync.WaitGroup
	sc := s.NewContext(t)
	for i := range n {
		wg.Go(func() {
			reg, config := small, map[string]any{"name": "a"}
			if i%100 == 0 {
				reg, config = large, map[string]any{"bytes": 1 << 20}
			}
			mine := *sc
			mine.Config = config
			if r, err := reg.New(steps.Capabilities{}).Run(ctx, &mine); err != nil || r.Status != steps.Succeeded {
				t.Errorf("got %q, %v", r.Status, err)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	var peak uint64
	for ticker := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-ticker.C:
			peak = max(peak, heap())
		case <-done:
			ticker.Stop()
			if peak < before {
				return 0
			}
			return peak - before
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
