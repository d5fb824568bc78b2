package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// A callError is a request that the daemon did not fulfil.
type callError struct {
	text string
	exit int
}

func (e *callError) Error() string { return e.text }

// answerBytesMax is the largest answer that is read. A page of the queue is
// well below it.
const answerBytesMax = 64 << 20

// call runs fn with a client of the daemon, and turns what goes wrong into
// words. fn returns errors of gRPC as they are.
func (a *app) call(cmd *cobra.Command, fn func(context.Context, adminpb.AdminServiceClient) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	// Dial once by hand: gRPC would wrap the cause beyond recognition.
	var dialer net.Dialer
	probe, err := dialer.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return a.unreachable(err)
	}
	if err := probe.Close(); err != nil {
		return a.unreachable(err)
	}
	conn, err := grpc.NewClient("passthrough:///holdfastd",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket of this host
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", a.socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(answerBytesMax)))
	if err != nil {
		return fmt.Errorf("prepare connection: %w", err)
	}
	defer func() { _ = conn.Close() }() // nothing is buffered in it
	return a.explain(fn(ctx, adminpb.NewAdminServiceClient(conn)))
}

// unreachable says what to do about a socket that nobody answers at.
func (a *app) unreachable(err error) error {
	hint := "is holdfastd running? use --socket if its admin_socket is elsewhere"
	switch {
	case errors.Is(err, fs.ErrPermission):
		hint = "run this as root or as the daemon's user"
	case errors.Is(err, context.DeadlineExceeded):
		hint = "it did not answer in time; look at holdfastd's log"
	case errors.Is(err, syscall.EINVAL):
		hint = "the path is too long for a socket"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return &callError{exit: exitUnavailable, text: fmt.Sprintf("cannot reach the daemon at %s (%v): %s", a.socket, err, hint)}
}

// explain turns a status of the daemon into a message and an exit status.
func (a *app) explain(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	var hint *adminpb.Hint
	for _, d := range s.Details() {
		if h, ok := d.(*adminpb.Hint); ok {
			hint = h
		}
	}
	switch s.Code() {
	case codes.Unavailable:
		if hint == nil { // not the daemon's own words: the connection broke
			return &callError{exit: exitUnavailable, text: fmt.Sprintf(
				"lost the daemon at %s (%s): is holdfastd running? a change may or may not have been made", a.socket, s.Message())}
		}
		return &callError{exit: exitTryAgain, text: s.Message() + leaderHint(hint)}
	case codes.DeadlineExceeded:
		if hint == nil {
			return &callError{exit: exitFailure, text: fmt.Sprintf(
				"no answer within %s: a change may still take effect; look before trying again, and raise --timeout", a.timeout)}
		}
		return &callError{exit: exitFailure, text: s.Message() + leaderHint(hint)}
	case codes.PermissionDenied, codes.Unauthenticated:
		return &callError{exit: exitFailure, text: s.Message() + ": run this as root or as the daemon's user"}
	case codes.Unimplemented:
		return &callError{exit: exitFailure, text: "the daemon does not know this command: holdfast and holdfastd are of different versions"}
	}
	return &callError{exit: exitFailure, text: s.Message()}
}

func leaderHint(h *adminpb.Hint) string {
	if h.GetLeader() == "" {
		return " (no leader is known)"
	}
	return fmt.Sprintf(" (the leader is %s)", h.GetLeader())
}
