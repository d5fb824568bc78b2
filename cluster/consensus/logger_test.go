package consensus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestLogger: from INFO on, with Raft's own kinds of arguments made plain.
func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := newLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	l.Trace("hidden")
	l.Debug("hidden")
	l.With("id", 7).Info("a message", "servers", hclog.Fmt("%d of %d", 1, 2), "error", errors.New("broken"))
	l.Named("net").Warn("another", "empty", hclog.Format{})
	l.Error("third")
	l.StandardLogger(nil).Print("from log")
	got := out.String()
	for _, want := range []string{
		`level=INFO msg="raft: a message" id=7 servers="1 of 2" error=broken`,
		`level=WARN msg="raft.net: another"`, `level=ERROR msg="raft: third"`, "from log",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "hidden") {
		t.Errorf("below INFO:\n%s", got)
	}
	if l.IsDebug() || l.IsTrace() || !l.IsInfo() || !l.IsWarn() || !l.IsError() || l.GetLevel() != hclog.Info {
		t.Error("levels")
	}
	if n := l.Named("x").ResetNamed("y").Name(); n != "y" {
		t.Errorf("name %q", n)
	}
	if got := l.With("a", 1).With("b", 2).ImpliedArgs(); len(got) != 4 {
		t.Errorf("implied %v", got)
	}
}
