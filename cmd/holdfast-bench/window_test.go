package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// answering is a dialer of servers that say the replies one after the other,
// whatever they hear.
func answering(replies ...string) func(context.Context, string) (net.Conn, error) {
	return func(context.Context, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			go func() { _, _ = io.Copy(io.Discard, there) }()
			for _, r := range replies {
				time.Sleep(time.Millisecond)
				if _, err := io.WriteString(there, r+"\r\n"); err != nil {
					return
				}
			}
		}()
		return here, nil
	}
}

func pourOptions(replies ...string) load.Options {
	return load.Options{
		Targets: []string{"x:25"}, Sessions: 3, Sizes: load.Size4K, Duration: time.Hour,
		Recipient: "user@example.test", Sender: "sender@sender.example", Run: "t", Dial: answering(replies...),
	}
}

func TestPour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Second) // the servers end
		s := &scene{}
		p := s.pour(t.Context(), pourOptions("220 here", "250 hello", "250 yes", "250 yes", "354 go on", "250 taken", "221 bye"))
		if err := p.until(func() bool { return p.taken.Load() >= 100*4096 }); err != nil {
			t.Fatal(err)
		}
		r, err := p.end()
		if err != nil || r.Accepted < 100 || r.Octets != p.taken.Load() {
			t.Errorf("%v, %v; looked on at %d octets", r, err, p.taken.Load())
		}
		if again, err := p.end(); err != nil || again.Accepted != r.Accepted {
			t.Errorf("ended again: %v, %v", again, err)
		}
	})
}

// A load in which anything is refused measures nothing.
func TestPourRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer time.Sleep(time.Second) // the servers end
		p := (&scene{}).pour(t.Context(), pourOptions("220 here", "250 hello", "250 yes", "250 yes", "354 go on", "451 later"))
		time.Sleep(time.Second)
		if _, err := p.end(); err == nil || !strings.Contains(err.Error(), "451 later") {
			t.Errorf("%v", err)
		}
		o := pourOptions("554 no")
		o.Duration, o.Count = 0, 3
		p = (&scene{}).pour(t.Context(), o)
		if err := p.until(func() bool { return false }); err == nil || !strings.Contains(err.Error(), "too soon") {
			t.Errorf("%v", err)
		}
		if _, err := p.end(); err == nil || errors.Is(err, errEnough) {
			t.Errorf("%v", err)
		}
	})
}

func TestWindow(t *testing.T) {
	if got := (window{Octets: 100, Device: 330}).perOctet(); got != 3.3 {
		t.Error(got)
	}
}
