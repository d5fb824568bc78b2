package admin

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

func TestSocketIsForItsOwnerAlone(t *testing.T) {
	_, _, path := serve(t, newFakeCluster())
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestListenRefusesASocketInUse(t *testing.T) {
	client, _, path := serve(t, newFakeCluster())
	if _, err := Listen(path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("error %v", err)
	}
	if _, err := client.Status(t.Context(), &adminpb.StatusRequest{}); err != nil {
		t.Errorf("the one that used it is gone: %v", err)
	}
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as after SIGKILL
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestListenLeavesOtherFilesAlone(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("mail"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(filepath.Dir(path), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, link, filepath.Dir(path)} {
		if _, err := Listen(p); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("%s: %v", p, err)
		}
	}
	if content, err := os.ReadFile(path); string(content) != "mail" || err != nil {
		t.Errorf("content %q, %v", content, err)
	}
}

func TestAPanicIsAnError(t *testing.T) {
	c := newFakeCluster()
	c.onView = func() { panic("a defect") }
	client, logs, _ := serve(t, c)
	for range 2 {
		_, err := client.Status(t.Context(), &adminpb.StatusRequest{})
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "defect") {
			t.Errorf("error %v", err)
		}
	}
	if !strings.Contains(logs.String(), `panic="a defect"`) {
		t.Errorf("the log does not say: %s", logs)
	}
}

func TestLargeRequestsAreRefused(t *testing.T) {
	c := newFakeCluster()
	client, _, _ := serve(t, c)
	_, err := client.HoldMessage(t.Context(), &adminpb.HoldMessageRequest{Reason: strings.Repeat("a", 5<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error %v", err)
	}
	if c.proposals() != 0 {
		t.Error("it was proposed")
	}
}

// TestConnectionsAreBounded opens more connections than are allowed: the rest
// are closed, and there is room again when some have gone.
func TestConnectionsAreBounded(t *testing.T) {
	creds := &peerCredentials{log: slog.New(slog.DiscardHandler)}
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accept := func() (net.Conn, error) {
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		conn, info, err := creds.ServerHandshake(server)
		if err == nil && info.(Caller).PID != int32(os.Getpid()) {
			t.Errorf("caller %v", info)
		}
		return conn, err
	}
	var open []net.Conn
	for range connectionsMax {
		conn, err := accept()
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	if _, err := accept(); !errors.Is(err, errConnections) {
		t.Errorf("one more: %v", err)
	}
	for range 2 {
		_ = open[0].Close() // closing twice makes one place, not two
	}
	if _, err := accept(); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	if _, err := accept(); !errors.Is(err, errConnections) {
		t.Errorf("one more: %v", err)
	}
}

func TestOtherTransportsAreRefused(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, _, err := (&peerCredentials{log: slog.New(slog.DiscardHandler)}).ServerHandshake(a); err == nil {
		t.Error("a connection that says nothing about its peer was accepted")
	}
}
