package lockengine

import (
	"context"
	"fmt"
)

// Acquire takes a lock, waiting for it until ctx ends; then it fails with an
// error that is both ErrCanceled and the cause of ctx. Other errors are those
// of [Engine.Wait]. A ctx that has ended already takes nothing.
//
// A grant can come while ctx ends. Then exactly one of two things is true:
// Cancel finds the wait still there, so there is no grant and none will come;
// or it does not, then the outcome is decided, its callback runs or is about
// to, and Acquire returns that outcome, a grant too. So no grant is ever lost
// between the two.
func Acquire(ctx context.Context, e Engine, req Request) (Grant, error) {
	if ctx.Err() != nil {
		return Grant{}, canceled(ctx)
	}
	type outcome struct {
		grant Grant
		err   error
	}
	decided := make(chan outcome, 1) // the callback must not block
	g, id, err := e.Wait(&req, func(g Grant, err error) { decided <- outcome{g, err} })
	if err != nil || id == 0 {
		return g, err
	}
	select {
	case o := <-decided:
		return o.grant, o.err
	case <-ctx.Done():
	}
	if e.Cancel(id, false) {
		return Grant{}, canceled(ctx)
	}
	o := <-decided
	return o.grant, o.err
}

func canceled(ctx context.Context) error {
	return fmt.Errorf("%w: %w", ErrCanceled, context.Cause(ctx))
}
