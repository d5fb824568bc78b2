// Command holdfast is the administrator's tool: it shows and changes the queue
// of a cluster through the admin socket of a node on this host, and makes the
// keys and certificates that nodes need.
//
// Tables are for people and may change; "-o json" is for programs and keeps its
// field names. Everything that came from outside, replies and addresses, is
// shown with control characters escaped. Exit status: 0 done, 64 wrong usage, 69
// no daemon at the socket, 75 nothing was changed and it is worth trying again,
// 130 interrupted, 1 anything else. Messages go to standard error and say what
// to do.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
