package smtpd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/smtpd"
)

// TestDialogs plays the scripts of testdata, each on a connection of its own:
//
//	C: text       the client sends text and CRLF
//	C= "text\n"   the client sends a Go string as it is
//	S: text       the server's next line; "..." at the end stands for anything
//	S: EOF        the server closes
//	Q: state      the queue from now on is: ready, not ready, disk low
//	BODY "text"   the body of the next message that was stored
//	RCPT a,b      the recipients of the same message
//	FROM a        its reverse-path
//	NONE          no further message was stored
//	---           a new connection
func TestDialogs(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(script)
			if err != nil {
				t.Fatal(err)
			}
			q := newFakeQueue()
			_, addr := start(t, q, func(c *smtpd.Config) { c.MaxMessageSize = 1 << 20; c.RecipientsMax = 3 })
			var c *client
			seen := 0
			for i, line := range strings.Split(string(text), "\n") {
				at := script + ":" + strconv.Itoa(i+1)
				kind, rest, _ := strings.Cut(line, " ")
				if c == nil && (kind == "C:" || kind == "C=" || kind == "S:") {
					c = dial(t, addr)
				}
				unquoted := rest
				if strings.HasPrefix(rest, `"`) {
					if unquoted, err = strconv.Unquote(rest); err != nil {
						t.Fatalf("%s: %v", at, err)
					}
				}
				switch kind {
				case "", "#":
				case "---":
					c = nil
				case "C:":
					c.send(rest + "\r\n")
				case "C=":
					c.send(unquoted)
				case "S:":
					got := c.line()
					want, any := strings.CutSuffix(rest, "...")
					if got != rest && !(any && strings.HasPrefix(got, want)) {
						t.Fatalf("%s: server said %q, want %q", at, got, rest)
					}
				case "Q:":
					q.setReady(map[string]error{"ready": nil, "not ready": smtpd.ErrNotAccepted, "disk low": smtpd.ErrDiskLow}[rest])
				case "BODY":
					if m := q.messages(); len(m) <= seen || m[seen].body != unquoted {
						t.Fatalf("%s: stored %q, want as message %d %q", at, fmt.Sprint(m), seen, unquoted)
					}
					seen++
				case "RCPT", "FROM":
					m := q.messages()[seen-1].envelope
					got := m.From.String()
					if kind == "RCPT" {
						var all []string
						for _, r := range m.Recipients {
							all = append(all, r.Path.String())
						}
						got = strings.Join(all, ",")
					}
					if got != unquoted {
						t.Fatalf("%s: %s %q, want %q", at, kind, got, unquoted)
					}
				case "NONE":
					if m := q.messages(); len(m) != seen {
						t.Fatalf("%s: %d messages stored, want %d", at, len(m), seen)
					}
				default:
					t.Fatalf("%s: unknown line %q", at, line)
				}
			}
		})
	}
}
