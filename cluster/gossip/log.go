package gossip

import (
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// The lines at warn and above that pass per logWindow. Each packet of a stranger
// is worth an error to memberlist, and a scan must not fill the disk.
const (
	logLinesMax = 10
	logWindow   = time.Minute
)

// A logWriter takes memberlist's lines, "[WARN] memberlist: text", to slog.
type logWriter struct {
	log *slog.Logger

	mu      sync.Mutex
	window  time.Time // when it began
	lines   int       // in it
	dropped int
}

func newLogger(l *slog.Logger) *log.Logger { return log.New(&logWriter{log: l}, "", 0) }

// Write implements io.Writer; log.Logger calls it once per line.
func (w *logWriter) Write(p []byte) (int, error) {
	level, text := parseLine(strings.TrimSpace(string(p)))
	if level < slog.LevelWarn {
		w.log.Log(context.Background(), level, text)
		return len(p), nil
	}
	w.mu.Lock()
	if now := time.Now(); now.Sub(w.window) >= logWindow {
		w.window, w.lines = now, 0
	}
	w.lines++
	pass := w.lines <= logLinesMax
	dropped := w.dropped
	if pass {
		w.dropped = 0
	} else {
		w.dropped++
	}
	w.mu.Unlock()
	if pass && dropped > 0 {
		w.log.Log(context.Background(), level, text, "lines_dropped_before", dropped)
	} else if pass {
		w.log.Log(context.Background(), level, text)
	}
	return len(p), nil
}

// parseLine splits the level off. memberlist's errors are our warnings: they
// tell of other nodes' failures, and of packets that anybody can send.
func parseLine(line string) (slog.Level, string) {
	level := slog.LevelInfo
	if rest, ok := strings.CutPrefix(line, "["); ok {
		word, text, ok := strings.Cut(rest, "] ")
		if ok {
			line = text
			switch word {
			case "DEBUG":
				level = slog.LevelDebug
			case "WARN", "ERR", "ERROR":
				level = slog.LevelWarn
			}
		}
	}
	return level, "gossip: " + strings.TrimPrefix(line, "memberlist: ")
}
