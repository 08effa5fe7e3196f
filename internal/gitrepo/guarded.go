package gitrepo

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// PushCheck says whether anything may still be pushed for a step; an error is
// why not. It is called right before a push, for several steps at once.
type PushCheck func(ctx context.Context, p Pusher) error

// Guarded returns a Dialer whose remotes ask check about every step that a push
// is for before they push any of it. One refusal refuses the whole push, which
// leaves the remote as it was: what else was in it can be pushed again.
func Guarded(inner Dialer, check PushCheck) Dialer { return &guarded{inner, check} }

type guarded struct {
	inner Dialer
	check PushCheck
}

// maxChecks bounds how many checks of one push run at once.
const maxChecks = 8

// Dial implements Dialer.
func (d *guarded) Dial(ctx context.Context, t Target) (Remote, error) {
	r, err := d.inner.Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	return &guardedRemote{Remote: r, check: d.check}, nil
}

type guardedRemote struct {
	Remote
	check PushCheck
}

// Push implements Remote.
func (r *guardedRemote) Push(ctx context.Context, p Push) error {
	g, checking := errgroup.WithContext(ctx)
	g.SetLimit(maxChecks)
	for _, pusher := range p.For {
		g.Go(func() error { return r.check(checking, pusher) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("nothing was pushed: %w", err)
	}
	return r.Remote.Push(ctx, p)
}
