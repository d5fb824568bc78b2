package dnscheck

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Node is one node of the cluster, as the cluster knows it.
type Node struct {
	Name string
	Host string // its host name, without the trailing dot; "" where it is not known
	// Addresses are where it takes mail on port 25. Behind address translation
	// others see it elsewhere.
	Addresses []netip.Addr
	// Here says that it runs on the host from which is looked.
	Here bool
}

// A Domain is a relay domain.
type Domain struct {
	Name mail.Domain
	// Targets are the hosts, names or addresses, that its mail is delivered to.
	// None means that its MX records say so, unless OnDemand.
	Targets []string
	// OnDemand says that its primary calls for its mail, and need not be in DNS.
	OnDemand bool
}

// Facts are what was seen.
type Facts struct {
	Now   time.Time
	Roots *x509.CertPool // public authorities; nil are the host's
	// Validates says that the resolver tells what DNSSEC vouches for. Where it does
	// not, nothing seems to be signed.
	Validates bool
	Nodes     []NodeFacts
	Domains   []DomainFacts
}

// NodeFacts are what was seen of one node. Where Node.Host is empty there is
// nothing else.
type NodeFacts struct {
	Node
	DNS      Host
	Pointers []Pointer // of each of its public addresses
	TLSA     TLSA
	Ports    []Port // of each of its addresses in DNS
}

// A Host is what was found at a host's name.
type Host struct {
	route.Host
	Err error // beside what was found, where not all was
}

// A Pointer is what was found at an address.
type Pointer struct {
	Address netip.Addr
	Names   []string
	// Confirmed are those names that lead back to the address.
	Confirmed []string
	Err       error
}

// TLSA is what was found at _25._tcp.HOST.
type TLSA struct {
	Records []tlspolicy.TLSARecord
	Signed  bool
	Err     error
}

// A Port is what answered at port 25 of an address.
type Port struct {
	Address netip.Addr
	Name    string // that it gave itself in its banner
	// StartTLS says that it offers STARTTLS.
	StartTLS bool
	TLS      *tls.ConnectionState // nil where there was no handshake
	Err      error                // why not, or why it did not get as far as EHLO
}

// DomainFacts are what was seen of one relay domain.
type DomainFacts struct {
	Domain
	MX    []route.MX
	MXErr error
	// Hosts are the MX hosts, and the targets that are names, without the nodes.
	Hosts map[string]Host
	// TLSA says of an MX host that is no node whether it has TLSA records that are
	// signed.
	TLSA map[string]bool
	STS  STS
}

// STS is what was found of a domain's MTA-STS policy.
type STS struct {
	Records    []string // TXT at _mta-sts.DOMAIN
	RecordsErr error
	// Asked says that the policy was asked for: it is announced, or there is a
	// host for it.
	Asked  bool
	Policy tlspolicy.STSPolicy
	Err    error
}
