package kargo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepd/stepd/e2e/kargo/standin"
	"github.com/stepd/stepd/internal/sharedata"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/load"
)

var golden struct {
	once sync.Once
	err  error
}

// sameAsKargo holds the stand-in's engine and evaluator against the answers of
// real Kargo: what they would accept proves nothing otherwise. Cases with files
// are left to the engine's own tests, as are the wordings of messages.
func sameAsKargo(t *testing.T) {
	t.Helper()
	dir := sharedata.Path(t, "kargo", "golden")
	golden.once.Do(func() { golden.err = compareGolden(dir, t.TempDir()) })
	if golden.err != nil {
		t.Fatalf("the stand-in does not answer as Kargo does: %v", golden.err)
	}
}

// TestStandInAnswersAsKargo is what every other test relies on.
func TestStandInAnswersAsKargo(t *testing.T) { sameAsKargo(t) }

func compareGolden(dir, work string) error {
	quirks, err := os.ReadFile(filepath.Join(dir, "QUIRKS"))
	if err != nil {
		return err
	}
	cases, err := filepath.Glob(filepath.Join(dir, "cases", "*.yaml"))
	if err != nil {
		return err
	}
	compared := 0
	for _, file := range cases {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+string(quirks), "\n"+name+"\t") || withFiles.Match(text) {
			continue
		}
		workDir := filepath.Join(work, name)
		if err := os.Mkdir(workDir, 0o700); err != nil {
			return err
		}
		answer, err := os.ReadFile(filepath.Join(dir, "golden", name+".json"))
		if err != nil {
			return err
		}
		if err := compareCase(string(text), answer, workDir); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		compared++
	}
	if compared < 50 {
		return fmt.Errorf("only %d cases could be compared", compared)
	}
	return nil
}

var (
	withFiles     = regexp.MustCompile(`(?m)^kind:\s*Files\s*$`)
	withPromotion = regexp.MustCompile(`(?m)^kind:\s*Promotion\s*$`)
)

func compareCase(text string, answer []byte, workDir string) error {
	var want struct {
		InflationError string
		WebhookErrors  []string
		Phase          string
		Steps          []struct {
			Alias, Status string
			ErrorCount    uint32
		}
		State map[string]any
	}
	if err := json.Unmarshal(answer, &want); err != nil {
		return err
	}
	set, err := load.Bytes("case.yaml", []byte(text))
	var resolved *runner.Resolved
	if err == nil {
		o := runner.Options{PromotionName: "p-1"}
		if withPromotion.MatchString(text) {
			o.PromotionName = ""
		}
		resolved, err = runner.Resolve(set, o)
	}
	switch refused := want.InflationError != "" || len(want.WebhookErrors) > 0; {
	case want.InflationError != "" && err == nil:
		return fmt.Errorf("Kargo refuses this: %s", want.InflationError)
	case err != nil && refused:
		return nil
	case err != nil:
		return err
	}
	registry, err := standin.Steps(nil, resolved.Data)
	if err != nil {
		return err
	}
	p := resolved.Promotion
	p.WorkDir = workDir
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := (&runner.Engine{Registry: registry, Data: resolved.Data, Clock: &impatient{time.Now()}}).RunToCompletion(ctx, p)
	if err != nil {
		return err
	}
	var gotSteps, wantSteps []string
	for _, s := range out.Steps {
		gotSteps = append(gotSteps, fmt.Sprintf("%s %s %d", s.Alias, s.Status, s.ErrorCount))
	}
	for _, s := range want.Steps {
		wantSteps = append(wantSteps, fmt.Sprintf("%s %s %d", s.Alias, s.Status, s.ErrorCount))
	}
	encoded, err := json.Marshal(out.State)
	if err != nil {
		return err
	}
	var state map[string]any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(encoded), workDir, "$WORKDIR")), &state); err != nil {
		return err
	}
	if d := cmp.Diff([]any{want.Phase, wantSteps, want.State}, []any{string(out.Phase), gotSteps, state}); d != "" {
		return fmt.Errorf("phase, steps and state (-Kargo +stand-in):\n%s", d)
	}
	return nil
}

// impatient is a clock that moves when it is waited for.
type impatient struct{ now time.Time }

func (c *impatient) Now() time.Time { return c.now }

func (c *impatient) Sleep(ctx context.Context, d time.Duration) error {
	c.now = c.now.Add(d)
	return ctx.Err()
}
