package rpc

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Queue bounds how many attempts run at a time and how many wait for their
// turn. A nil *Queue is no bound.
type Queue struct {
	running chan struct{}
	waiting chan struct{}
}

// NewQueue lets running attempts run and waiting more wait; any further one is
// refused at once.
func NewQueue(running, waiting int) *Queue {
	return &Queue{
		running: make(chan struct{}, max(running, 1)),
		waiting: make(chan struct{}, max(running, 1)+max(waiting, 0)),
	}
}

// Depth returns how many attempts run and how many wait.
func (q *Queue) Depth() (running, waiting int) {
	running = len(q.running)
	return running, max(len(q.waiting)-running, 0)
}

// enter waits for a turn; the caller calls done when the attempt is over.
func (q *Queue) enter(ctx context.Context) (done func(), err error) {
	if q == nil {
		return func() {}, nil
	}
	select {
	case q.waiting <- struct{}{}:
	default:
		return nil, status.Errorf(codes.ResourceExhausted,
			"%d steps run and %d wait already; try again later", cap(q.running), cap(q.waiting)-cap(q.running))
	}
	select {
	case q.running <- struct{}{}:
		return func() { <-q.running; <-q.waiting }, nil
	case <-ctx.Done():
		<-q.waiting
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}
