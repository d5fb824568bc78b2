package tlspolicy

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Mode is which kind of TLS a relay domain's next hops must show.
type Mode uint8

// The modes, from the weakest. The zero value is today's way.
const (
	// Opportunistic takes TLS where it is offered, verifies nothing, and goes on
	// in the clear where it fails (RFC 7435).
	Opportunistic Mode = iota
	// Require demands TLS 1.2 or newer, with any certificate: it keeps out those
	// who only listen, and those who strip STARTTLS.
	Require
	// Verify demands a pinned key, or a certificate of an accepted authority for
	// an accepted name.
	Verify
	// DANE demands what the hop's TLSA records say, where DNSSEC vouches for them.
	DANE
	// MTASTS demands what the domain's MTA-STS policy says.
	MTASTS
)

var modeNames = [...]string{
	Opportunistic: "opportunistic", Require: "require", Verify: "verify", DANE: "dane", MTASTS: "mta-sts",
}

// String returns the mode as it is configured.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseMode reads what String writes.
func ParseMode(s string) (Mode, error) {
	for m, name := range modeNames {
		if s == name {
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("TLS mode %q is none of %s", s, strings.Join(modeNames[:], ", "))
}

// A Pin is the SHA-256 of a SubjectPublicKeyInfo in DER, as in a TLSA record
// "3 1 1".
type Pin [sha256.Size]byte

// String returns the pin in hexadecimal.
func (p Pin) String() string { return hex.EncodeToString(p[:]) }

// ParsePin reads a pin in hexadecimal, with or without colons, or in base64 with
// its padding.
func ParsePin(s string) (Pin, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(raw) != sha256.Size {
		raw, err = base64.StdEncoding.DecodeString(s)
	}
	if err != nil || len(raw) != sha256.Size {
		return Pin{}, fmt.Errorf("pin %.100q is no SHA-256 in hexadecimal or base64", s)
	}
	return Pin(raw), nil
}

// PinOf returns the pin of a certificate's key.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// What a Policy may have at most. It travels in a log entry.
const (
	pinsMax    = 32
	namesMax   = 32
	caBytesMax = 48 << 10
)

// A Policy is what one relay domain's next hops must show.
type Policy struct {
	Mode Mode
	// Pins are keys that Verify accepts as the hop's own, whatever else its
	// certificate says: neither name nor date then matter.
	Pins []Pin
	// CAs are certificates in PEM of the authorities that Verify accepts. Empty,
	// without pins, means the public ones. With pins, either is enough: that is
	// how one goes over from the one to the other.
	CAs string
	// Names are what Verify looks for in a certificate of an authority. ".example"
	// stands for every name below example. Empty means the hop's name where it was
	// configured; where it came from MX records, which anybody may have forged, it
	// means the relay domain and every name below it.
	Names []string
}

// Check says what is wrong with a policy, or nil.
func (p Policy) Check() error {
	if int(p.Mode) >= len(modeNames) {
		return fmt.Errorf("unknown TLS %s", p.Mode)
	}
	if p.Mode != Verify {
		if len(p.Pins)+len(p.CAs)+len(p.Names) > 0 {
			return fmt.Errorf("TLS mode %s takes no pins, authorities or names", p.Mode)
		}
		return nil
	}
	if len(p.Pins) > pinsMax || len(p.Names) > namesMax || len(p.CAs) > caBytesMax {
		return fmt.Errorf("more than %d pins, %d names or %d octets of certificates", pinsMax, namesMax, caBytesMax)
	}
	if p.CAs != "" {
		if _, err := p.authorities(); err != nil {
			return err
		}
	}
	if len(p.Names) > 0 && !p.byName() {
		return errors.New("names are looked for in certificates of an authority, and only keys are pinned")
	}
	for _, name := range p.Names {
		bare := strings.TrimPrefix(name, ".")
		d, err := mail.ParseDomain(bare)
		if err != nil {
			return fmt.Errorf("name %.300q: %w", name, err)
		}
		if string(d) != bare {
			return fmt.Errorf("name %q is written %q", name, strings.TrimSuffix(name, bare)+string(d))
		}
	}
	return nil
}

// byName reports whether a certificate of an authority may be enough.
func (p Policy) byName() bool { return p.CAs != "" || len(p.Pins) == 0 }

// authorities reads CAs, all of it: what is passed over in silence would be an
// authority that somebody counts on.
func (p Policy) authorities() (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	rest := []byte(p.CAs)
	for n := 1; ; n++ {
		if rest = bytes.TrimSpace(rest); len(rest) == 0 {
			return pool, nil
		}
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, fmt.Errorf("authority %d is no certificate in PEM", n)
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("authority %d is a %.40q in PEM, and no certificate", n, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("authority %d: %w", n, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("authority %d (%.100s) may not sign certificates: pin its key instead", n, c.Subject)
		}
		pool.AddCert(c)
	}
}
