package consensus

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// logger gives what Raft logs to slog, from INFO on.
type logger struct {
	to      *slog.Logger
	name    string
	implied []any
}

var _ hclog.Logger = logger{}

func newLogger(to *slog.Logger) hclog.Logger { return logger{to: to, name: "raft"} }

// slogLevel maps Raft's levels. What is below INFO is not logged.
func slogLevel(l hclog.Level) (slog.Level, bool) {
	switch l {
	case hclog.Info:
		return slog.LevelInfo, true
	case hclog.Warn:
		return slog.LevelWarn, true
	case hclog.Error:
		return slog.LevelError, true
	default:
		return 0, false
	}
}

func (l logger) Log(level hclog.Level, msg string, args ...any) {
	at, ok := slogLevel(level)
	if !ok || !l.to.Enabled(context.Background(), at) {
		return
	}
	l.to.Log(context.Background(), at, l.name+": "+msg, plain(args)...)
}

// plain renders hclog's own kinds of arguments.
func plain(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case hclog.Format:
			out[i] = fmt.Sprint([]any(a)...)
			if len(a) > 0 {
				if format, ok := a[0].(string); ok {
					out[i] = fmt.Sprintf(format, a[1:]...)
				}
			}
		case fmt.Stringer:
			out[i] = a.String()
		default:
			out[i] = a
		}
	}
	return out
}

func (l logger) Trace(string, ...any)                {}
func (l logger) Debug(string, ...any)                {}
func (l logger) Info(msg string, args ...any)        { l.Log(hclog.Info, msg, args...) }
func (l logger) Warn(msg string, args ...any)        { l.Log(hclog.Warn, msg, args...) }
func (l logger) Error(msg string, args ...any)       { l.Log(hclog.Error, msg, args...) }
func (l logger) IsTrace() bool                       { return false }
func (l logger) IsDebug() bool                       { return false }
func (l logger) IsInfo() bool                        { return l.to.Enabled(context.Background(), slog.LevelInfo) }
func (l logger) IsWarn() bool                        { return l.to.Enabled(context.Background(), slog.LevelWarn) }
func (l logger) IsError() bool                       { return l.to.Enabled(context.Background(), slog.LevelError) }
func (l logger) ImpliedArgs() []any                  { return l.implied }
func (l logger) Name() string                        { return l.name }
func (l logger) ResetNamed(name string) hclog.Logger { l.name = name; return l }
func (l logger) SetLevel(hclog.Level)                {}
func (l logger) GetLevel() hclog.Level               { return hclog.Info }

func (l logger) With(args ...any) hclog.Logger {
	l.implied = append(append([]any(nil), l.implied...), args...)
	l.to = l.to.With(plain(args)...)
	return l
}

func (l logger) Named(name string) hclog.Logger {
	l.name += "." + name
	return l
}

func (l logger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.to.Handler(), slog.LevelInfo)
}

func (l logger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
