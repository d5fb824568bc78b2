package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// chunkBytes is the most that is passed on in one piece.
	chunkBytes = 32 << 10
	// chunksMax is how many pieces wait in one direction of a connection.
	chunksMax = 64
)

// Options describe a link.
type Options struct {
	// RoundTrip is how much longer an answer takes.
	RoundTrip time.Duration
	// Dial opens a connection to the server.
	Dial func(context.Context) (net.Conn, error)
}

// Serve carries the connections of l until ctx ends, which is no error, or until
// l fails. It closes l, and returns when all connections have ended.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	var connections sync.WaitGroup
	defer connections.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		client, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		connections.Go(func() { join(ctx, client, o) })
	}
}

// join carries one connection until both of its directions have ended.
func join(ctx context.Context, client net.Conn, o Options) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer client.Close()
	if !pause(ctx, time.Now().Add(o.RoundTrip*3/2)) {
		return
	}
	server, err := o.Dial(ctx)
	if err != nil {
		return // Its end tells the client.
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	var directions sync.WaitGroup
	for _, d := range []struct{ from, to net.Conn }{{client, server}, {server, client}} {
		directions.Go(func() {
			// A connection that is broken in one direction is over in both.
			if err := carry(ctx, d.from, d.to, o.RoundTrip/2); err != nil {
				cancel()
			}
		})
	}
	directions.Wait()
}

// A chunk is octets that are under way, or the end of a direction.
type chunk struct {
	octets []byte
	end    error     // io.EOF, or what broke the connection
	due    time.Time // when it reaches the other side
}

// carry passes one direction on, all of it so much later. It returns nil at the
// direction's end. Its reader ends with ctx, by which the connections are closed.
func carry(ctx context.Context, from, to net.Conn, later time.Duration) error {
	way := make(chan chunk, chunksMax)
	var reading sync.WaitGroup
	defer reading.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reading.Go(func() { read(ctx, from, way, later) })
	for {
		var c chunk
		select {
		case c = <-way:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !pause(ctx, c.due) {
			return ctx.Err()
		}
		if errors.Is(c.end, io.EOF) {
			return closeWrite(to)
		}
		if c.end != nil {
			return c.end
		}
		if _, err := to.Write(c.octets); err != nil {
			// The reader waits for more, and is not to.
			from.Close()
			return fmt.Errorf("pass on: %w", err)
		}
	}
}

// read sends on its way what comes in, up to the end.
func read(ctx context.Context, from net.Conn, way chan<- chunk, later time.Duration) {
	buffer := make([]byte, chunkBytes)
	send := func(c chunk) bool {
		c.due = time.Now().Add(later)
		select {
		case way <- c:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		n, err := from.Read(buffer)
		if n > 0 && !send(chunk{octets: bytes.Clone(buffer[:n])}) {
			return
		}
		if err != nil {
			send(chunk{end: err})
			return
		}
	}
}

// closeWrite ends one direction, or all of a connection that has no halves.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// pause waits until a time, and reports whether ctx lives on.
func pause(ctx context.Context, until time.Time) bool {
	wait := time.Until(until)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
