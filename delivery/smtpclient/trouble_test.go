package smtpclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Every way to end early, at every stage: the error names the stage, and only
// after the dot is there doubt.
func TestStagesThatHangDropOrSay421(t *testing.T) {
	stages := map[string]Stage{
		deliverytest.Banner: StageBanner, deliverytest.Hello: StageHello, deliverytest.StartTLS: StageStartTLS,
		deliverytest.Handshake: StageHandshake, deliverytest.Mail: StageMail, deliverytest.Rcpt: StageRecipient,
		deliverytest.Data: StageData, deliverytest.Body: StageBody, deliverytest.Dot: StageDot,
	}
	config := certificate(t)
	for name, stage := range stages {
		for _, how := range []string{deliverytest.Hang, deliverytest.Drop, "421 4.3.2 going down", "garbage"} {
			if stage == StageHandshake && how != deliverytest.Hang && how != deliverytest.Drop {
				continue
			}
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &deliverytest.Primary{Extensions: allExtensions, TLS: config}
					p.Answer = func(at, _ string) string {
						if at == name {
							return how
						}
						return ""
					}
					err := wholeMessage(t.Context(), serve(p), strings.Repeat("0123456789\r\n", 100_000))
					var at *StageError
					if stage == StageDot && strings.HasPrefix(how, "421") {
						if err != nil { // A reply to the dot like any other.
							t.Fatal(err)
						}
						return
					}
					if !errors.As(err, &at) || at.Stage != stage {
						t.Fatalf("%v, want stage %s", err, stage)
					}
					if errors.Is(err, ErrNoReply) != (stage == StageDot) {
						t.Fatalf("doubt is wrong: %v", err)
					}
					if errors.Is(err, ErrTLS) != (stage == StageHandshake || stage == StageStartTLS && !strings.HasPrefix(how, "421")) {
						t.Fatalf("TLS is wrong: %v", err)
					}
					if stage != StageDot && len(p.Received()) != 0 {
						t.Fatal("a dot was sent")
					}
					synctest.Wait()
				})
			})
		}
	}
}

// wholeMessage opens a conversation and sends one message.
func wholeMessage(ctx context.Context, nc net.Conn, content string) error {
	c, err := Open(ctx, nc, Options{Hello: "node.test", TLS: &tls.Config{InsecureSkipVerify: true}})
	if err != nil {
		return err
	}
	defer c.Abort()
	answer, err := c.Begin(ctx, Transaction{Recipients: []mail.Recipient{{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: "a", Host: "example.test"}}}}})
	if err != nil {
		return err
	}
	if !answer.Open {
		return errors.New("not open")
	}
	if err := c.Body(ctx, nil, strings.NewReader(content)); err != nil {
		return err
	}
	_, err = c.Dot(ctx)
	return err
}

func TestRepliesAreBounded(t *testing.T) {
	endless := map[string]string{
		"line":  "250 " + strings.Repeat("x", 10<<20),
		"lines": strings.Repeat("250-more\r\n", 1<<20) + "250 end",
		"mixed": "250-a\r\n550 b",
		"code":  "999 ?",
		"short": "25",
		"sep":   "250_x",
	}
	for name, reply := range endless {
		for _, at := range []string{deliverytest.Banner, deliverytest.Hello, deliverytest.Rcpt, deliverytest.Dot} {
			t.Run(name+" at "+at, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: allExtensions}
				p.Answer = func(stage, _ string) string {
					if stage == at {
						return reply
					}
					return ""
				}
				err := wholeMessage(t.Context(), serve(p), "x\r\n")
				if !errors.Is(err, ErrReply) || errors.Is(err, ErrNoReply) != (at == deliverytest.Dot) {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestDribbledReplyEndsWithItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := deliverytest.Pipe()
		gone := make(chan struct{})
		defer func() { <-gone }()
		go func() {
			defer close(gone)
			defer server.Close()
			for {
				if _, err := io.WriteString(server, "2"); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		start := time.Now()
		_, err := Open(t.Context(), client, Options{Hello: "node.test"})
		if err == nil || time.Since(start) > BannerTimeout+time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	})
}

func TestHELOFallback(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	p.Answer = func(stage, line string) string {
		if stage == deliverytest.Hello && strings.HasPrefix(line, "EHLO") {
			return "502 5.5.1 not here"
		}
		return ""
	}
	c := open(t, p)
	if c.Offers("PIPELINING") {
		t.Fatal("extensions without EHLO")
	}
	if _, reply := send(t, c, plain(t), "x\r\n"); reply.Code != 250 {
		t.Fatal(reply)
	}
}

func TestSTARTTLS(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions, TLS: certificate(t)}
	c := open(t, p)
	if _, reply := send(t, c, plain(t), "x\r\n.\r\n"); reply.Code != 250 || c.TLS() == nil || !p.Received()[0].TLS {
		t.Fatal("not under TLS")
	}
	if lines := p.Lines(); lines[0] != "EHLO node.test" || lines[1] != "STARTTLS" || lines[2] != "EHLO node.test" {
		t.Fatalf("%q", lines)
	}
	// Refused: opportunistic goes on in the clear.
	p = &deliverytest.Primary{TLS: certificate(t), Answer: func(stage, _ string) string {
		if stage == deliverytest.StartTLS {
			return "454 4.7.0 not now"
		}
		return ""
	}}
	if _, reply := send(t, open(t, p), plain(t), "x\r\n"); reply.Code != 250 || p.Received()[0].TLS {
		t.Fatal(reply)
	}
}

// What stands behind the 220 in the same segment was said by nobody we know.
func TestSTARTTLSDropsWhatCameInTheClear(t *testing.T) {
	p := &deliverytest.Primary{Extensions: []string{"PIPELINING"}, TLS: certificate(t)}
	p.Answer = func(stage, _ string) string {
		if stage == deliverytest.StartTLS {
			return "220 go on\r\n250-evil\r\n250 SMTPUTF8"
		}
		return ""
	}
	c := open(t, p)
	if c.Offers("SMTPUTF8") || !c.Offers("PIPELINING") || c.TLS() == nil {
		t.Fatal("injected reply was believed")
	}
}

// A 250 that was sent before the dot is no reply to the dot.
func TestReplyBeforeTheDotIsNotItsReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := deliverytest.Pipe()
		p := &deliverytest.Primary{Answer: func(stage, _ string) string {
			if stage == deliverytest.Data {
				return "354 go on\r\n250 2.0.0 taken already"
			}
			return ""
		}}
		go p.Serve(server)
		err := wholeMessage(t.Context(), client, "x\r\n")
		if !errors.Is(err, ErrReply) || errors.Is(err, ErrNoReply) {
			t.Fatal(err)
		}
		if len(p.Received()) != 0 {
			t.Fatal("a dot was sent")
		}
	})
}

// TestRegressionLateReplyTooMany holds that a reply too many of which the others come
// late does not pass for a refusal of the message: nobody is refused for good before the
// peer was seen to be in step.
func TestRegressionLateReplyTooMany(t *testing.T) {
	const nobody, twice = "550 5.1.1 nobody", "550 5.1.1 nobody\r\n550 5.1.1 nobody"
	silent := func(err error) bool {
		var e net.Error
		return errors.As(err, &e) && e.Timeout() && errors.Is(err, ErrReply)
	}
	outOfStep := func(err error) bool { return errors.Is(err, ErrReply) }
	believed := func(err error) bool { return err == nil }
	for name, c := range map[string]struct {
		pipelining bool
		says       map[string]string // by the stage or the command line
		want       func(error) bool
		usable     bool // the connection, behind that
	}{
		"twice":                 {true, map[string]string{"RCPT TO:<two@example.test>": twice}, outOfStep, false},
		"twice, the next later": {true, map[string]string{"RCPT TO:<one@example.test>": twice, "RCPT TO:<two@example.test>": "450 4.2.0 later"}, outOfStep, false},
		"DATA, said of it":      {true, map[string]string{deliverytest.Data: nobody}, believed, true},
		"DATA, in its turn":     {false, map[string]string{deliverytest.Data: nobody}, believed, true},
		"DATA, not said of it":  {false, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: "354 go on"}, outOfStep, false},
		"RCPT, in its turn":     {false, map[string]string{deliverytest.Rcpt: nobody}, believed, true},
		"RCPT, not said of it":  {false, map[string]string{deliverytest.Rcpt: nobody, deliverytest.Reset: "450 4.2.0 later"}, outOfStep, false},
		"twice, says 421":       {true, map[string]string{"RCPT TO:<two@example.test>": twice, deliverytest.Data: "421 4.3.2 going down"}, outOfStep, false},
		"twice, leaves":         {true, map[string]string{"RCPT TO:<two@example.test>": twice, deliverytest.Data: deliverytest.Drop}, outOfStep, false},
		"twice, breaks off":     {true, map[string]string{"RCPT TO:<two@example.test>": twice, deliverytest.Data: deliverytest.Sever}, outOfStep, false},
		"knows no RSET":         {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: "502 5.5.1 no such command"}, believed, false},
		"leaves at once":        {true, map[string]string{deliverytest.Data: deliverytest.Last(nobody)}, believed, false},
		"leaves":                {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: deliverytest.Drop}, believed, false},
		"breaks off":            {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: deliverytest.Sever}, believed, false},
		"says 421":              {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: "421 4.3.2 going down"}, believed, false},
		"falls silent":          {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: deliverytest.Hang}, silent, false},
		"talks nonsense":        {true, map[string]string{deliverytest.Data: nobody, deliverytest.Reset: "what?"}, outOfStep, false},
	} {
		for _, behindDot := range []bool{false, true} {
			if behindDot && !c.pipelining {
				continue
			}
			t.Run(fmt.Sprintf("%s, behind a dot %v", name, behindDot), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var begins atomic.Bool
					var resets atomic.Int32
					p := &deliverytest.Primary{Answer: func(stage, line string) string {
						if !begins.Load() {
							return ""
						}
						if stage == deliverytest.Reset {
							resets.Add(1)
						}
						if say := c.says[strings.TrimSpace(line)]; stage == deliverytest.Rcpt && say != "" {
							return say
						}
						if stage == deliverytest.Rcpt || stage == deliverytest.Data {
							time.Sleep(time.Second) // Late enough for what was said before to be read alone.
						}
						return c.says[stage]
					}}
					if c.pipelining {
						p.Extensions = []string{"PIPELINING"}
					}
					conn, err := Open(t.Context(), serve(p), Options{Hello: "node.test"})
					if err != nil {
						t.Fatal(err)
					}
					defer func() {
						conn.Abort()
						time.Sleep(time.Minute) // The primary ends.
					}()
					to := func(locals ...string) (t Transaction) {
						for _, l := range locals {
							t.Recipients = append(t.Recipients, mail.Recipient{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: l, Host: "example.test"}}})
						}
						return t
					}
					two, dots := to("one", "two"), 0
					answer := Answer{Open: true}
					if behindDot {
						// The second message shows that pipelining works here.
						answer, err = conn.Begin(t.Context(), to("first"))
						for _, next := range []Transaction{to("second"), two} {
							if err != nil || !answer.Open {
								t.Fatalf("%+v, %v", answer, err)
							}
							if err := conn.Body(t.Context(), nil, strings.NewReader("x\r\n")); err != nil {
								t.Fatal(err)
							}
							begins.Store(len(next.Recipients) == 2)
							dots++
							if reply, begun, err := conn.DotAndBegin(t.Context(), next); err != nil || !begun {
								t.Fatal(reply, begun, err)
							}
							answer, err = conn.Answer(t.Context())
						}
					} else {
						begins.Store(true)
						answer, err = conn.Begin(t.Context(), two)
					}
					if !c.want(err) || answer.Open {
						t.Fatalf("%+v, %v", answer, err)
					}
					if behindDot && conn.PipeliningFailed() != (err != nil) {
						t.Errorf("%v, and pipelining failed: %v", err, !(err != nil))
					}
					if _, err = conn.Begin(t.Context(), two); (err == nil) != c.usable {
						t.Fatalf("the next: %v", err)
					}
					if n := resets.Load(); c.usable && n != 2 { // Once for each refusal: the next MAIL needs no other.
						t.Errorf("%d times RSET, want 2", n)
					}
					if n := len(p.Received()); n != dots {
						t.Errorf("%d dots were sent, want %d", n, dots)
					}
				})
			})
		}
	}
}

// A connection that the peer had already reset did not take the dot.
func TestDotThatTheNetworkDidNotTakeIsNoDoubt(t *testing.T) {
	client, server := deliverytest.Pipe()
	c := &Conn{raw: client, wire: client, inData: true, timeouts: Timeouts{}.withDefaults()}
	c.r, c.w = newTestReader(client), newTestWriter(blockWriter{c})
	_ = server.Close()
	if _, err := c.Dot(t.Context()); err == nil || errors.Is(err, ErrNoReply) {
		t.Fatal(err)
	}
}

func TestContextEndsEveryWait(t *testing.T) {
	for _, stage := range []string{deliverytest.Banner, deliverytest.Hello, deliverytest.Mail, deliverytest.Body, deliverytest.Dot} {
		synctest.Test(t, func(t *testing.T) {
			p := &deliverytest.Primary{Extensions: allExtensions, Answer: func(at, _ string) string {
				if at == stage {
					return deliverytest.Hang
				}
				return ""
			}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			err := wholeMessage(ctx, serve(p), strings.Repeat("0123456789\r\n", 100_000))
			if err == nil || time.Since(start) != time.Second {
				t.Fatalf("%s: %v after %v", stage, err, time.Since(start))
			}
		})
	}
}

func FuzzReply(f *testing.F) {
	f.Add("250-a\r\n250 b\r\n")
	f.Add("250\r\n")
	f.Add("550 5.1.1 x\n")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := readResponse(newTestReader(strings.NewReader(s)))
		if err == nil && (r.Code < 200 || r.Code > 599 || len(r.Text) > replyTextBytesMax || strings.ContainsAny(r.Text, "\r\n\x00")) {
			t.Fatalf("%q: %+v", s, r)
		}
	})
}
