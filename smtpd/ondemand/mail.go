package ondemand

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Mail is what callers call for. All methods may be called concurrently; Ready and
// ByKey do not block.
type Mail interface {
	// Ready returns nil when this node can commit now. With any error callers are told
	// 421, and to ask again.
	Ready() error
	// Login returns the relay domains that a name and password may call for: none where
	// one of them is wrong. An error says that this cannot be told now. It takes a while,
	// so that passwords cannot be tried fast, and heeds ctx.
	Login(ctx context.Context, user, password string) ([]mail.Domain, error)
	// ByKey returns the relay domains that who has a key may call for. It is SHA-256 of
	// the key (SubjectPublicKeyInfo) of a TLS certificate.
	ByKey(key [32]byte) []mail.Domain
	// Call makes what waits for the domains due, and returns those of them for which
	// something does. An error says that this cannot be done now. It heeds ctx.
	Call(ctx context.Context, domains []mail.Domain) ([]mail.Domain, error)
	// Deliver delivers what is due for domains over a connection on which the caller is
	// the server now, and closes it.
	Deliver(c Turned, domains []mail.Domain)
}

// Turned is a connection on which the roles have turned.
type Turned struct {
	Conn   net.Conn // what lies below TLS
	TLS    *tls.Conn
	Client netip.Addr
}
