package kargo_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stepd/stepd/runner/kargoapi"
)

// gate holds something up until it is opened.
type gate struct {
	// left is closed when whoever was held up is gone, let through or not.
	reached, opened, left chan struct{}
	once, twice           sync.Once
}

func newGate(t *testing.T) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{}), left: make(chan struct{})}
	t.Cleanup(g.open)
	return g
}

func (g *gate) reach() { g.once.Do(func() { close(g.reached) }) }

func (g *gate) open() { g.twice.Do(func() { close(g.opened) }) }

// wait waits until the gate is reached.
func (g *gate) wait(t *testing.T, p *project, promotion string) {
	t.Helper()
	eventually(t, "arrival at the gate", func() bool {
		select {
		case <-g.reached:
			return true
		default:
			return false
		}
	}, func() string { return describe(p.get(t, promotion)) })
}

// isLeft tells whether whoever was held up is gone.
func (g *gate) isLeft() bool {
	select {
	case <-g.left:
		return true
	default:
		return false
	}
}

// when says what a held push has done.
type when int

const (
	beforePush when = iota
	// afterPush holds the answer: the server has done what was asked.
	afterPush
)

// holdPush holds the next push into the project's repository until the gate is
// opened or the client is gone, which then has no answer.
func (p *project) holdPush(t *testing.T, at when) *gate {
	t.Helper()
	g := newGate(t)
	var first sync.Once
	p.servers.git.Wrap(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			hold := false
			if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/"+p.gitops+"/git-receive-pack") {
				first.Do(func() { hold = true })
			}
			if !hold {
				next.ServeHTTP(w, r)
				return
			}
			defer close(g.left)
			body, err := io.ReadAll(r.Body) // else it is not noticed that the client leaves
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			if at == afterPush {
				next.ServeHTTP(httptest.NewRecorder(), r)
			}
			g.reach()
			select {
			case <-g.opened:
			case <-r.Context().Done():
			}
			if at == afterPush || r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	t.Cleanup(func() { p.servers.git.Wrap(nil) })
	return g
}

// holdStep keeps a step of the project's Promotions running, by answers of
// front's, until the gate is opened. It is reached when a Promotion is stored as
// being there: requests for the step up to then have ended.
func (p *project) holdStep(t *testing.T, alias string) *gate {
	t.Helper()
	g := newGate(t)
	calls := map[string]int{}
	var mu sync.Mutex
	p.stepd.front.intercept(p.name, func(w http.ResponseWriter, c call) bool {
		select {
		case <-g.opened:
			return false
		default:
		}
		if c.Alias != alias {
			return false
		}
		mu.Lock()
		calls[c.Promotion]++
		n := calls[c.Promotion]
		mu.Unlock()
		if n > 1 { // the pass before has been stored
			g.reach()
		}
		answer(w, http.StatusOK, `{"status":"Running","message":"held","output":null}`)
		return true
	})
	t.Cleanup(func() { p.stepd.front.intercept(p.name, nil) })
	return g
}

// heldAt waits until a Promotion is stored as running a step.
func (p *project) heldAt(t *testing.T, promotion, alias string) *kargoapi.Promotion {
	t.Helper()
	var got *kargoapi.Promotion
	eventually(t, "Promotion at step "+alias, func() bool {
		got = p.get(t, promotion)
		return status(got, alias) == "Running"
	}, func() string { return describe(got) })
	return got
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text))
}
