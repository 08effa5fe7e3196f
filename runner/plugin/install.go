package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/sandbox"
	"github.com/stepd/stepd/runner/rpc"
	"github.com/stepd/stepd/steps"
)

// InstallOptions says what to install and how far to trust it.
type InstallOptions struct {
	// Path of the program. Its file name, or Name, is the plugin's.
	Path string
	Name string
	// Source is recorded; its time is set by Install.
	Source Source
	// Grants are the capabilities the plugin may have. Granting what none of
	// its steps asks for is an error.
	Grants []steps.Capability
	// Reserved are step kinds that a plugin cannot have: stepd's own.
	Reserved []string
	// Now is the time of installation.
	Now time.Time
}

// Install copies a program into the plugin directory, starts it once, confined,
// without a work dir and, where the system can do that, without network, to
// hear which steps it has, and pins it. What was installed under the name
// before is replaced.
func Install(ctx context.Context, host HostOptions, opts InstallOptions) (Entry, error) {
	if opts.Name == "" {
		opts.Name = filepath.Base(opts.Path)
	}
	if !namePattern().MatchString(opts.Name) {
		return Entry{}, fmt.Errorf("cannot install %q: a plugin's name begins with stepd-step- and goes on with small letters, digits, dots and dashes", opts.Name)
	}
	var entry Entry
	err := change(host.Dir, func(ix *Index) error {
		// Under the lock, what is there is of an installation that was killed.
		left, err := filepath.Glob(filepath.Join(host.Dir, ".install-*"))
		for _, dir := range left {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		if err != nil {
			return err
		}
		stage, err := os.MkdirTemp(host.Dir, ".install-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(stage) }()
		staged := filepath.Join(stage, opts.Name)
		if err := copyProgram(opts.Path, staged); err != nil {
			return err
		}
		digest, err := sandbox.Digest(staged)
		if err != nil {
			return err
		}
		opts.Source.Installed = opts.Now
		entry = Entry{Name: opts.Name, Digest: digest, Source: opts.Source, Grants: opts.Grants}
		here := host
		here.Dir = stage
		here.NoNetwork = true
		entry.Steps, err = interview(ctx, here, entry)
		if errors.Is(err, errors.ErrUnsupported) {
			here.NoNetwork = host.NoNetwork
			entry.Steps, err = interview(ctx, here, entry)
		}
		if err != nil {
			return err
		}
		if err := acceptable(*ix, entry, opts.Reserved); err != nil {
			return err
		}
		if err := os.Rename(staged, filepath.Join(host.Dir, opts.Name)); err != nil {
			return err
		}
		ix.Plugins = append(slices.DeleteFunc(ix.Plugins, func(e Entry) bool { return e.Name == opts.Name }), entry)
		return nil
	})
	if err != nil {
		return Entry{}, fmt.Errorf("cannot install plugin %s: %w", opts.Name, err)
	}
	return entry, nil
}

// Remove deletes a plugin and its pin.
func Remove(dir, name string) error {
	return change(dir, func(ix *Index) error {
		if _, ok := ix.Find(name); !ok {
			return fmt.Errorf("cannot remove plugin %q: it is not installed", name)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot remove plugin: %w", err)
		}
		ix.Plugins = slices.DeleteFunc(ix.Plugins, func(e Entry) bool { return e.Name == name })
		return nil
	})
}

// interview starts the plugin and asks it for its steps.
func interview(ctx context.Context, opts HostOptions, e Entry) ([]Step, error) {
	h := newHost(opts)
	defer h.Close()
	k := key{plugin: e.Name}
	p, err := h.acquire(ctx, k, e)
	if err != nil {
		return nil, err
	}
	defer h.release(k, p, true)
	ctx, cancel := context.WithTimeout(ctx, h.opts.StartTimeout)
	defer cancel()
	regs, err := rpc.NewClient(p.conn, rpc.ClientOptions{}).Registrations(ctx)
	if err != nil {
		return nil, err
	}
	return describe(regs), nil
}

// acceptable refuses a plugin whose steps would get in the way of others', and
// grants that go beyond what is asked for.
func acceptable(ix Index, e Entry, reserved []string) error {
	if len(e.Steps) == 0 {
		return errors.New("it has no steps")
	}
	var asked []steps.Capability
	for i, s := range e.Steps {
		if !stepPattern().MatchString(s.Name) {
			return fmt.Errorf("it has a step %q: a step's name has small letters, digits and dashes, at most 63", s.Name)
		}
		if slices.ContainsFunc(e.Steps[:i], func(o Step) bool { return o.Name == s.Name }) {
			return fmt.Errorf("it has two steps %q", s.Name)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("its step %q cannot be used: %w", s.Name, err)
		}
		if slices.Contains(reserved, s.Name) {
			return fmt.Errorf("its step %q would replace stepd's own", s.Name)
		}
		for _, other := range ix.Plugins {
			if other.Name != e.Name && slices.ContainsFunc(other.Steps, func(o Step) bool { return o.Name == s.Name }) {
				return fmt.Errorf("its step %q is already one of plugin %s; remove that first", s.Name, other.Name)
			}
		}
		asked = append(asked, s.RequiredCapabilities...)
	}
	for _, g := range e.Grants {
		if !slices.Contains(asked, g) {
			return fmt.Errorf("none of its steps asks for the capability %q; they ask for [%s]", g, join(asked))
		}
	}
	return nil
}

// stepPattern is what a plugin's step may be called: what a `uses` of Kargo's
// looks like, and nothing that would disturb a terminal.
func stepPattern() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) }

// check refuses what would fail when the step is used.
func (s Step) check() error {
	for _, c := range s.RequiredCapabilities {
		if !slices.Contains(steps.AllCapabilities(), c) {
			return fmt.Errorf("it asks for the capability %q, which there is not", string(c))
		}
	}
	for what, schema := range map[string]json.RawMessage{"config": s.ConfigSchema, "output": s.OutputSchema} {
		if schema == nil {
			continue
		}
		if _, err := configschema.Compile(schema); err != nil {
			return fmt.Errorf("its %s schema: %w", what, err)
		}
	}
	return nil
}

func join(caps []steps.Capability) string {
	names := make([]string, len(caps))
	for i, c := range caps {
		names[i] = string(c)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

func copyProgram(from, to string) (err error) {
	src, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a named pipe is not waited for
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if info, err := src.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is not a file", from), err)
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
