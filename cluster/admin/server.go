package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The limits of the server. Requests are small: the largest one names a domain
// with its targets.
const (
	requestBytesMax  = 256 << 10
	headerBytesMax   = 16 << 10
	streamsMax       = 100 // per connection
	connectionsMax   = 64
	handshakeTimeout = 5 * time.Second
	idleTimeout      = 10 * time.Minute
	pingPeriodMin    = 30 * time.Second
	probeTimeout     = 2 * time.Second
)

// socketMode: root and the daemon's own user.
const socketMode = 0o600

// ErrSocketInUse: another process answers at the socket.
var ErrSocketInUse = errors.New("socket is in use by another process")

// Listen opens the admin socket, which only the daemon's user and root may
// open. A socket file that nobody answers at, left by a process that was killed,
// is replaced; anything else in its place is refused.
func Listen(path string) (net.Listener, error) {
	if err := clearStale(path); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	// Until the mode is set, the handshake keeps others out.
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, errors.Join(err, l.Close()))
	}
	return l, nil
}

func clearStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that is no socket: move it away, or choose another admin_socket")
	}
	conn, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		return errors.Join(ErrSocketInUse, conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether it is in use: %w", err)
	}
	return os.Remove(path)
}

// A Server serves the admin calls at a unix socket.
type Server struct {
	grpc    *grpc.Server
	service *Service
}

// NewServer returns a server of s that is not serving yet.
func NewServer(s *Service) *Server {
	guard := recoverer{s.log}
	g := grpc.NewServer(
		grpc.Creds(&peerCredentials{log: s.log}),
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingPeriodMin}),
		grpc.UnaryInterceptor(guard.unary),
		grpc.WaitForHandlers(true),
	)
	adminpb.RegisterAdminServiceServer(g, s)
	return &Server{grpc: g, service: s}
}

// Serve answers calls that come in at l, and watches the alarms, until Close. It
// closes l, and returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	ctx, stop := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		s.service.WatchAlarms(ctx)
	}()
	err := s.grpc.Serve(l)
	stop()
	<-watched
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	return nil
}

// Close stops the server: calls under way have until ctx ends, then they are
// cancelled. No handler runs when it has returned.
func (s *Server) Close(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

// A recoverer turns a panic of a handler into an error: a defect in a report
// must not end a node that holds mail.
type recoverer struct{ log *slog.Logger }

func (r recoverer) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.ErrorContext(ctx, "panic in an admin call", "call", info.FullMethod, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			reply, err = nil, status.Error(codes.Internal, "internal error: see holdfastd's log")
		}
	}()
	return handle(ctx, req)
}
