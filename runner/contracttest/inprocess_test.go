package contracttest_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/contracttest"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/steps"
)

// TestContractInProcess holds the engine's wrappers around a step in the same
// process against the contract.
func TestContractInProcess(t *testing.T) { contracttest.Run(t, subject(t)) }

func subject(t testing.TB) contracttest.Subject {
	t.Helper()
	registry, err := runner.NewRegistry(contracttest.Steps()...)
	if err != nil {
		t.Fatal(err)
	}
	return contracttest.Subject{
		Unsettled:    true,
		GrantsOnCall: true,
		Lookup: func(t testing.TB, kind string) steps.Registration {
			reg, ok := registry.Lookup(kind)
			if !ok {
				t.Fatalf("no step %q", kind)
			}
			var schema *configschema.Schema
			if reg.ConfigSchema != nil {
				if schema, err = configschema.Compile(reg.ConfigSchema); err != nil {
					t.Fatal(err)
				}
			}
			factory := reg.New
			reg.New = func(caps steps.Capabilities) steps.Runner {
				return steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
					log := slog.New(slog.DiscardHandler)
					return guard.Recovered(guard.Validated(factory(caps), kind, schema), log).Run(ctx, sc)
				})
			}
			return reg
		},
	}
}

func BenchmarkInProcess(b *testing.B) { contracttest.Benchmark(b, subject(b)) }
