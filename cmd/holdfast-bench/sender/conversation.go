package sender

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// replyMax bounds a reply, all lines together.
const replyMax = 64 << 10

// A reply is what a server said.
type reply struct {
	code int
	text string // the lines, without codes, joined by a line feed
}

func (r reply) String() string {
	return fmt.Sprintf("%d %s", r.code, strings.ReplaceAll(r.text, "\n", " / "))
}

func (r reply) class() int { return r.code / 100 }

// A conversation is a connection on which EHLO succeeded.
type conversation struct {
	conn     net.Conn
	in       *bufio.Reader
	out      *bufio.Writer
	offers   map[string]bool
	unwatch  func() bool
	patience time.Duration // for each reply but that to the final dot
	// waited is told how long each reply took.
	waited func(what string, from time.Time, r reply, err error)
}

// dial opens a conversation: connection, banner, EHLO, and STARTTLS if wanted
// and offered. The connection is closed when ctx ends.
func dial(ctx context.Context, o *Options, address string, waited func(ledger.Wait)) (*conversation, error) {
	dialing, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := o.Dial(dialing, address)
	if err != nil {
		return nil, err
	}
	c := &conversation{conn: conn, in: bufio.NewReader(conn), out: bufio.NewWriterSize(conn, 64<<10), patience: o.CommandTime}
	c.waited = func(what string, from time.Time, r reply, err error) {
		w := ledger.Wait{Target: address, For: what, Span: ledger.Span{From: from, To: time.Now()}, End: strconv.Itoa(r.code)}
		if err != nil {
			w.End = err.Error()
		}
		waited(w)
	}
	c.unwatch = context.AfterFunc(ctx, func() { conn.Close() })
	if err := c.greet(o); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conversation) greet(o *Options) error {
	c.conn.SetDeadline(time.Now().Add(c.patience))
	r, err := c.await("the connection", time.Now())
	if err != nil {
		return fmt.Errorf("banner: %w", err)
	}
	if r.code != 220 {
		return fmt.Errorf("banner: %v", r)
	}
	if err := c.ehlo(o.Hello); err != nil {
		return err
	}
	if o.TLS == nil || !c.offers["STARTTLS"] {
		return nil
	}
	if r, err = c.command("STARTTLS"); err != nil || r.code != 220 {
		return fmt.Errorf("starttls: %v %w", r, err)
	}
	if c.in.Buffered() > 0 {
		return errors.New("starttls: octets behind the 220")
	}
	secured := tls.Client(c.conn, o.TLS)
	if err := secured.Handshake(); err != nil {
		return fmt.Errorf("starttls: %w", err)
	}
	c.conn = secured
	c.in.Reset(secured)
	c.out.Reset(secured)
	return c.ehlo(o.Hello)
}

func (c *conversation) ehlo(name string) error {
	r, err := c.command("EHLO " + name)
	if err != nil {
		return fmt.Errorf("ehlo: %w", err)
	}
	if r.code != 250 {
		return fmt.Errorf("ehlo: %v", r)
	}
	c.offers = make(map[string]bool)
	for offer := range strings.SplitSeq(r.text, "\n") {
		word, _, _ := strings.Cut(offer, " ")
		c.offers[strings.ToUpper(word)] = true
	}
	return nil
}

func (c *conversation) command(line string) (reply, error) {
	c.conn.SetDeadline(time.Now().Add(c.patience))
	c.out.WriteString(line + "\r\n")
	if err := c.out.Flush(); err != nil {
		return reply{}, err
	}
	return c.await(verb(line), time.Now())
}

func verb(line string) string {
	verb, _, _ := strings.Cut(line, " ")
	return verb
}

// await reads the reply to a command that the server could begin with at a time.
func (c *conversation) await(what string, from time.Time) (reply, error) {
	r, err := c.read()
	c.waited(what, from, r, err)
	return r, err
}

// read reads one reply.
func (c *conversation) read() (reply, error) {
	var r reply
	var text strings.Builder
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return reply{}, err
		}
		line = strings.TrimRight(line, "\r\n")
		if len(line) < 3 || text.Len()+len(line) > replyMax {
			return reply{}, fmt.Errorf("no SMTP reply: %.80q", line)
		}
		if r.code, err = strconv.Atoi(line[:3]); err != nil || r.code < 200 || r.code > 599 {
			return reply{}, fmt.Errorf("no SMTP reply: %.80q", line)
		}
		if len(line) > 4 {
			text.WriteString(line[4:])
		}
		if len(line) == 3 || line[3] != '-' {
			r.text = text.String()
			return r, nil
		}
		text.WriteByte('\n')
	}
}

// quit ends the conversation politely, which also tells the server that its
// last 250 was read.
func (c *conversation) quit() {
	c.conn.SetDeadline(time.Now().Add(dialTime))
	c.out.WriteString("QUIT\r\n")
	if c.out.Flush() == nil {
		_, _ = c.read()
	}
}

func (c *conversation) close() {
	c.unwatch()
	c.conn.Close()
}
