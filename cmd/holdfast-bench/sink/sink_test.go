package sink

import (
	"bufio"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// talk serves one connection and says text to it, then returns everything that
// the server said until it closed, and what arrived.
func talk(t *testing.T, o Options, text string) (said string, arrivals []ledger.Arrival, stats Stats) {
	t.Helper()
	var mu sync.Mutex
	o.Arrival = func(a ledger.Arrival) error {
		mu.Lock()
		defer mu.Unlock()
		arrivals = append(arrivals, a)
		return nil
	}
	o.Hostname = "p.test"
	s := New(o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		b.WriteString(lines.Text() + "\n")
	}
	s.Close()
	if err := <-served; !errors.Is(err, ErrClosed) {
		t.Errorf("Serve: %v", err)
	}
	return b.String(), arrivals, s.Stats()
}

const envelope = "EHLO c.test\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<r+m@example.test>\r\nDATA\r\n"

func codes(said string) string {
	var all []string
	for line := range strings.Lines(said) {
		if len(line) > 3 && line[3] == ' ' {
			all = append(all, line[:3])
		}
	}
	return strings.Join(all, " ")
}

// What a recipient's NOTIFY is belongs to what arrives.
func TestNotify(t *testing.T) {
	_, arrivals, _ := talk(t, Options{}, "EHLO c.test\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<a+m@example.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a\r\n"+
		"RCPT TO:<b+m@example.test>\r\nDATA\r\nhello\r\n.\r\nMAIL FROM:<s@x.test>\r\nRCPT TO:<c+m@example.test>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
	var got []string
	for _, a := range arrivals {
		got = append(got, *a.Notify)
	}
	if want := []string{"SUCCESS,DELAY", "", ""}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestContent(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for _, c := range []struct {
		name, data, codes string
		content           string
		taken, violation  bool
	}{
		{"plain", "a\r\n\r\nb\r\n.\r\n", "250", "a\r\n\r\nb\r\n", true, false},
		{"empty", ".\r\n", "250", "", true, false},
		{"one dot", "..\r\n.\r\n", "250", ".\r\n", true, false},
		{"dots", "..a\r\n...\r\n.b\r\n.\r\n", "250", ".a\r\n..\r\nb\r\n", true, false},
		{"longer than the buffer", long + "\r\n." + long + "\r\n.\r\n", "250", long + "\r\n" + long + "\r\n", true, false},
		{"CRLF across the buffer's edge", long[:64<<10-1] + "\r\n.\r\n", "250", long[:64<<10-1] + "\r\n", true, false},
		{"bare LF", "a\nb\r\n.\r\n", "550", "", false, true},
		{"bare CR", "a\rb\r\n.\r\n", "550", "", false, true},
		{"bare CR in a long line", long[:64<<10-1] + "\rb\r\n.\r\n", "550", "", false, true},
		{"LF dot LF is no end", "a\n.\nb\r\n.\r\n", "550", "", false, true},
		{"LF dot CRLF is no end", "a\n.\r\nb\r\n.\r\n", "550", "", false, true},
		{"LF alone", "a\r\n\nb\r\n.\r\n", "550", "", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			said, arrivals, stats := talk(t, Options{}, envelope+c.data+"QUIT\r\n")
			if got := codes(said); got != "220 250 250 250 354 "+c.codes+" 221" {
				t.Errorf("said %q", said)
			}
			if (len(arrivals) == 1) != c.taken || (stats.Violations > 0) != c.violation {
				t.Fatalf("%d arrivals, %+v", len(arrivals), stats)
			}
			if c.taken {
				want := ledger.Octets{Size: int64(len(c.content)), SHA256: ledger.DigestOf([]byte(c.content))}
				if a := arrivals[0]; a.Cuts[0] != want || a.Recipient != "r+m@example.test" || a.ReversePath != "s@x.test" {
					t.Errorf("arrived %+v, want %v", a, want)
				}
			}
		})
	}
}

func TestCommands(t *testing.T) {
	for _, c := range []struct{ name, say, codes string }{
		{"out of order", "MAIL FROM:<a@b>\r\nEHLO x\r\nRCPT TO:<a@b>\r\nDATA\r\nMAIL FROM:<>\r\nMAIL FROM:<>\r\nQUIT\r\n", "220 503 250 503 503 250 503 221"},
		{"unknown", "EHLO x\r\nFROB\r\nQUIT\r\n", "220 250 500 221"},
		{"bare LF", "EHLO x\n", "220 500"},
		{"a parameter that was not offered", "EHLO x\r\nMAIL FROM:<a@b> AUTH=<>\r\nQUIT\r\n", "220 250 555 221"},
		{"too big", "EHLO x\r\nMAIL FROM:<a@b> SIZE=999999999999\r\nQUIT\r\n", "220 250 552 221"},
		{"no path", "EHLO x\r\nMAIL FROM:a@b\r\nMAIL FROM:<a@b>\r\nRCPT TO:<>\r\nQUIT\r\n", "220 250 501 250 501 221"},
		{"octets behind STARTTLS", "EHLO x\r\nSTARTTLS\r\nQUIT\r\n", "220 250 503 221"},
	} {
		said, _, _ := talk(t, Options{}, c.say)
		if got := codes(said); got != c.codes {
			t.Errorf("%s: %s, want %s", c.name, got, c.codes)
		}
	}
}

// A server that is closed has let its listener go, also when it was closed at once, and
// another can take its place.
func TestStart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	for range 20 {
		s := Start(l, Options{Arrival: func(ledger.Arrival) error { return nil }})
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		conn.Close()
		if l, err = net.Listen("tcp", address); err != nil {
			t.Fatal(err)
		}
		Start(l, Options{}).Close()
		if l, err = net.Listen("tcp", address); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
}

// A 250 counts as read once the client says something more.
func TestUnread(t *testing.T) {
	message := "MAIL FROM:<>\r\nRCPT TO:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n.\r\n"
	faults := NewFaults(0)
	if _, _, stats := talk(t, Options{Faults: faults}, "EHLO x\r\n"+message+message+"QUIT\r\n"); stats.Unread != 0 || stats.Recipients != 4 {
		t.Errorf("all read: %+v", stats)
	}
	faults.Set(Fault{AfterDot, Drop, 1})
	if _, _, stats := talk(t, Options{Faults: faults}, "EHLO x\r\n"+message); stats.Unread != 2 {
		t.Errorf("the last one not: %+v", stats)
	}
	// What was sent with the dot, before the reply to it left, says nothing of it.
	faults.Set()
	inspect := func(string, []string, []byte) error { faults.Set(Fault{Mail, Drop, 1}); return nil }
	if _, _, stats := talk(t, Options{Faults: faults, Inspect: inspect}, "EHLO x\r\n"+message+message); stats.Unread != 2 || stats.Recipients != 2 {
		t.Errorf("a connection that ends with what came behind the dot: %+v", stats)
	}
}

// What Inspect refuses is not taken.
func TestInspect(t *testing.T) {
	o := Options{Inspect: func(_ string, _ []string, content []byte) error {
		if strings.Contains(string(content), "bad") {
			return errors.New("bad")
		}
		return nil
	}}
	said, arrivals, stats := talk(t, o, envelope+"bad\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<r+n@example.test>\r\nDATA\r\ngood\r\n.\r\nQUIT\r\n")
	if len(arrivals) != 1 || stats.Violations != 1 {
		t.Errorf("%d arrivals, %+v\n%s", len(arrivals), stats, said)
	}
}

// Who is refused by a fault is noted like who is not there.
func TestRefusedByFault(t *testing.T) {
	for stage, want := range map[Stage]int{Mail: 0, Rcpt: 1, Data: 1, Dot: 1} {
		faults, refused := NewFaults(1), 0
		faults.Set(Fault{Stage: stage, Action: Refuse, Rate: 1})
		said, arrivals, _ := talk(t, Options{Faults: faults, Refused: func(r ledger.Refusal) error {
			if refused++; r.Recipient != "r+m@example.test" {
				t.Errorf("%s: refused %q", stage, r.Recipient)
			}
			return nil
		}}, envelope+".\r\nQUIT\r\n")
		if refused != want || len(arrivals) != 0 {
			t.Errorf("%s: %d refused, want %d; %d arrivals\n%s", stage, refused, want, len(arrivals), said)
		}
	}
}

// A message cut off in the middle has not arrived.
func TestCutOff(t *testing.T) {
	var arrived int
	s := New(Options{Arrival: func(ledger.Arrival) error { arrived++; return nil }})
	here, there := net.Pipe()
	l := &one{conn: there, done: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	go io.Copy(io.Discard, here)
	io.WriteString(here, envelope+"half a line")
	here.Close()
	close(l.done)
	<-served
	s.Close()
	if arrived != 0 {
		t.Errorf("%d arrivals", arrived)
	}
}

// TestConnectionsMost: what a client has closed is no connection beside its next
// one, also while the session is still busy with what came over it.
func TestConnectionsMost(t *testing.T) {
	s := New(Options{Pace: time.Hour, Arrival: func(ledger.Arrival) error { return nil }})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	// connect returns when the session has begun.
	connect := func() (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		return c, in
	}
	most := func(want int64) {
		t.Helper()
		if got := s.Stats().ConnectionsMost; got != want {
			t.Errorf("%d connections at a time, want %d", got, want)
		}
	}
	first, in := connect()
	if _, err := io.WriteString(first, envelope+"x\r\n.\r\n"); err != nil {
		t.Fatal(err)
	}
	for line := ""; !strings.HasPrefix(line, "354"); {
		if line, err = in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	first.Close()
	second, _ := connect()
	most(1)
	third, _ := connect()
	most(2)
	second.Close()
	third.Close()
	fourth, _ := connect()
	fourth.Close()
	most(2)
	s.Close()
	<-served
	if stats := s.Stats(); stats.Connections != 4 || stats.ConnectionsMost != 2 {
		t.Errorf("%+v", stats)
	}
}

// one is a listener with one connection.
type one struct {
	conn net.Conn
	done chan struct{}
	once sync.Once
}

func (o *one) Accept() (c net.Conn, err error) {
	o.once.Do(func() { c = o.conn })
	if c != nil {
		return c, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *one) Close() error   { return nil }
func (o *one) Addr() net.Addr { return &net.UnixAddr{} }

func TestParseFault(t *testing.T) {
	for text, want := range map[string]Fault{
		"dot=defer:0.25": {Dot, Defer, 0.25}, "banner=hang": {Banner, Hang, 1}, "after-dot=drop": {AfterDot, Drop, 1},
	} {
		if got, err := ParseFault(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "dot", "dot=", "frob=drop", "dot=frob", "dot=drop:2", "dot=drop:-1", "dot=drop:NaN", "body=defer", "after-dot=refuse"} {
		if f, err := ParseFault(bad); err == nil {
			t.Errorf("%q parsed as %v", bad, f)
		}
	}
}
