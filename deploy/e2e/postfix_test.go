//go:build e2e

package e2e

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// A postfix is an instance of Postfix of a test.
type postfix struct {
	t *testing.T
	*mailserver.Instance
}

// newPostfix makes an instance that listens at address, port 25. It is not
// started.
func newPostfix(t *testing.T, dir, name, address string, settings map[string]string) *postfix {
	t.Helper()
	p, err := mailserver.NewInstance(mailserver.Place{Dir: dir, Name: name, Address: address, Port: 25}, settings)
	if err != nil {
		t.Fatal(err)
	}
	return &postfix{t, p}
}

func (p *postfix) start() { p.t.Helper(); p.must(p.Start()) }
func (p *postfix) stop()  { p.t.Helper(); p.must(p.Stop()) }

func (p *postfix) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *postfix) lines() []string { return mailserver.Lines(p) }
func (p *postfix) tail() string    { return mailserver.Tail(p) }
