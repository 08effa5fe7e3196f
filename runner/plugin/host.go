package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/stepd/stepd/internal/sandbox"
	"github.com/stepd/stepd/runner/plugin/protocol"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// HostOptions says how plugins are run. The zero value of an optional field
// is the default given with it.
type HostOptions struct {
	// Dir is the plugin directory. Required.
	Dir string
	// Log receives what plugins write to standard error; nil discards it.
	Log *slog.Logger
	// ReadOnly are paths that plugins may read besides the system's.
	ReadOnly []string
	// Limits bound every plugin process: DefaultLimits.
	Limits sandbox.Limits
	// NoNetwork leaves plugins no network, as a dry run does: what cannot reach
	// anybody changes nothing elsewhere. Where the system cannot do that,
	// plugins do not start.
	NoNetwork bool
	// StartTimeout is how long a plugin has to start: 10 s.
	StartTimeout time.Duration
	// IdleTimeout is how long a plugin that is not used keeps running: 1 min.
	IdleTimeout time.Duration
	// MaxProcesses is how many plugin processes run at a time; further steps
	// wait for their turn: 16.
	MaxProcesses int
	// Debug makes plugins fit for a debugger; nil is no debugging.
	Debug *Debugging
	// Reattach names plugins that run already, for debugging.
	Reattach map[string]protocol.Reattach
}

// DefaultLimits bound a plugin process that nobody limits otherwise.
func DefaultLimits() sandbox.Limits {
	return sandbox.Limits{OpenFiles: 4096, FileBytes: 4 << 30, MemoryBytes: 2 << 30}
}

// Host runs the steps of plugins. It is safe for concurrent use and has to be
// closed.
type Host struct {
	opts  HostOptions
	index Index
	// removeLeftOver is done once, before the first process starts.
	removeLeftOver func()

	mu     sync.Mutex
	closed bool
	// procs are the processes that run or start, in no order.
	procs map[key]*process
	// freed is closed, and replaced, when a waiter should look again.
	freed chan struct{}
	idle  *time.Timer
	ended sync.WaitGroup
}

// key names a process: a plugin for a work dir.
type key struct{ plugin, workDir string }

// Open reads the index of a plugin directory. No plugin starts before one of
// its steps runs.
func Open(opts HostOptions) (*Host, error) {
	h := newHost(opts)
	var err error
	if h.index, err = ReadIndex(opts.Dir); err != nil {
		return nil, err
	}
	unpinned, err := h.index.Unpinned(opts.Dir)
	if err != nil {
		return nil, err
	}
	for _, name := range unpinned {
		h.opts.Log.Warn("this plugin is not pinned and does not start; run `stepd plugin install` on it", "plugin", name)
	}
	return h, nil
}

func newHost(opts HostOptions) *Host {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.StartTimeout == 0 {
		opts.StartTimeout = 10 * time.Second
	}
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = time.Minute
	}
	if opts.MaxProcesses == 0 {
		opts.MaxProcesses = 16
	}
	if opts.Limits == (sandbox.Limits{}) {
		opts.Limits = DefaultLimits()
	}
	return &Host{
		opts: opts, procs: map[key]*process{}, freed: make(chan struct{}),
		removeLeftOver: sync.OnceFunc(func() { removeLeftOver(opts.Log) }),
	}
}

// Registrations describes the steps of all pinned plugins, from the index.
func (h *Host) Registrations() ([]steps.Registration, error) {
	var regs []steps.Registration
	for _, e := range h.index.Plugins {
		for _, s := range e.Steps {
			reg, err := s.registration(func(caps steps.Capabilities) steps.Runner {
				return &pluginRunner{host: h, entry: e, step: s, caps: caps}
			})
			if err != nil {
				return nil, fmt.Errorf("cannot use plugin %s: %w", e.Name, err)
			}
			regs = append(regs, reg)
		}
	}
	return regs, nil
}

// Close ends all plugins and waits for their end.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	if h.idle != nil {
		h.idle.Stop()
	}
	for k, p := range h.procs {
		h.retire(k, p)
	}
	h.mu.Unlock()
	h.ended.Wait()
}

// pluginRunner is one attempt of a plugin's step.
type pluginRunner struct {
	host  *Host
	entry Entry
	step  Step
	caps  steps.Capabilities
}

// Run implements steps.Runner. A plugin that crashed, or that did not stop in
// time when it was told to, is gone when Run returns, and the next attempt
// starts another.
func (r *pluginRunner) Run(ctx context.Context, sc *steps.Context) (steps.Result, error) {
	if r.host.opts.Debug != nil {
		var cancel context.CancelFunc
		ctx, cancel = patient(ctx, r.host.opts.Debug.Run)
		defer cancel()
	}
	k := key{r.entry.Name, sc.WorkDir}
	p, err := r.host.acquire(ctx, k, r.entry)
	if err != nil {
		return steps.Result{Status: steps.Errored}, err
	}
	p.step.Store(&sc.Alias)
	if len(r.step.RequiredCapabilities) > 0 && sc.Log != nil {
		sc.Log.Info("plugin capabilities", "plugin", r.entry.Name,
			"requested", r.step.RequiredCapabilities, "granted", r.caps.Only(r.entry.Grants).Names())
	}
	result, err := p.runners[r.step.Name].New(r.caps).Run(ctx, sc)
	_, ofTheStep := errors.AsType[*rpc.StepError](err)
	switch {
	case err == nil, ofTheStep && ctx.Err() == nil:
		r.host.release(k, p, false)
	case ctx.Err() != nil:
		// The plugin may have ended the attempt by now, or may not care. Only
		// its end makes sure that nothing happens after Run returned.
		r.host.release(k, p, true)
	default:
		if died := p.died(ctx); died && (!p.closing.Load() || p.crashed.Load()) {
			err = fmt.Errorf("%w: %s", err, p.epitaph())
		} else if why := r.host.whyRetired(p); why != "" {
			err = fmt.Errorf("%w: %s", err, why)
		}
		r.host.release(k, p, true)
	}
	return result, err
}

// acquire returns a running process for k, which the caller has to release.
func (h *Host) acquire(ctx context.Context, k key, e Entry) (*process, error) {
	h.removeLeftOver()
	for {
		h.mu.Lock()
		p := h.procs[k]
		wait := h.freed
		switch {
		case h.closed:
			h.mu.Unlock()
			return nil, errors.New("cannot run a plugin's step: stepd is shutting down")
		case p == nil && len(h.procs) < h.opts.MaxProcesses:
			p = newProcess(e, k.workDir, &h.opts)
			h.procs[k] = p
		case p == nil:
			if !h.evict() {
				h.mu.Unlock()
				select {
				case <-wait:
				case <-ctx.Done():
					return nil, fmt.Errorf("cannot run a plugin's step: %d plugins run already: %w", h.opts.MaxProcesses, ctx.Err())
				}
				continue
			}
			h.mu.Unlock()
			continue
		}
		reused := !p.lastUsed.IsZero()
		p.users++
		h.mu.Unlock()

		err := p.startOnce()
		if err == nil {
			err = p.announce(ctx)
		}
		if err != nil {
			h.release(k, p, true)
			return nil, err
		}
		if reused && (p.exited() || p.healthy(ctx) != nil) {
			h.release(k, p, true)
			if ctx.Err() != nil {
				return nil, fmt.Errorf("cannot run a plugin's step: %w", ctx.Err())
			}
			continue
		}
		return p, nil
	}
}

// release gives a process back. A bad one is ended before release returns.
func (h *Host) release(k key, p *process, bad bool) {
	h.mu.Lock()
	p.users--
	p.lastUsed = time.Now()
	if bad && !p.retired {
		h.retire(k, p)
	}
	if h.idle == nil && !h.closed && h.opts.Debug == nil {
		h.idle = time.AfterFunc(h.opts.IdleTimeout, h.sweep)
	}
	h.wake()
	h.mu.Unlock()
	if bad {
		<-p.done
	}
}

// whyRetired says why somebody else has taken a process out of use that did not
// end by itself; empty if nobody has.
func (h *Host) whyRetired(p *process) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !p.retired:
		return ""
	case h.closed:
		return "stepd is shutting down"
	}
	return "stepd ended the plugin, because another step that ran in it at the same time, for the same work dir, was cancelled or overran its time"
}

// sweep ends the processes that have been idle for long enough.
func (h *Host) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, p := range h.procs {
		if p.users == 0 && time.Since(p.lastUsed) >= h.opts.IdleTimeout {
			h.retire(k, p)
		}
	}
	h.idle = nil
	if len(h.procs) > 0 && !h.closed {
		h.idle = time.AfterFunc(h.opts.IdleTimeout, h.sweep)
	}
}

// evict retires the process that has been idle longest and tells whether there
// was one. The caller holds the lock.
func (h *Host) evict() bool {
	var oldest key
	var found *process
	for k, p := range h.procs {
		if p.users == 0 && (found == nil || p.lastUsed.Before(found.lastUsed)) {
			oldest, found = k, p
		}
	}
	if found == nil {
		return false
	}
	h.retire(oldest, found)
	return true
}

// retire takes a process out of use and ends it in the background. The caller
// holds the lock.
func (h *Host) retire(k key, p *process) {
	p.retired = true
	delete(h.procs, k)
	h.wake()
	h.ended.Go(func() {
		defer close(p.done)
		_ = p.startOnce() // a start under way has to be over first
		p.close()
	})
}

// wake lets waiters look again. The caller holds the lock.
func (h *Host) wake() {
	close(h.freed)
	h.freed = make(chan struct{})
}
