package tlspolicy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An STSMode is what an MTA-STS policy asks for.
type STSMode uint8

// The modes of RFC 8461 section 5.
const (
	STSModeNone    STSMode = iota // as if there were no policy
	STSModeTesting                // report, and deliver
	STSModeEnforce
)

var stsModeNames = [...]string{STSModeNone: "none", STSModeTesting: "testing", STSModeEnforce: "enforce"}

// String returns the mode as a policy writes it.
func (m STSMode) String() string {
	if int(m) < len(stsModeNames) {
		return stsModeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// STSPolicy is a domain's MTA-STS policy (RFC 8461 section 3.2).
type STSPolicy struct {
	Mode STSMode
	// MX are the names that mail may be delivered to, in lower case, the first
	// label "*" for any one label.
	MX     []string
	MaxAge time.Duration
}

// What is read of a policy.
const (
	STSPolicyBytesMax = 64 << 10
	// stsMaxAge is about a year (section 3.2).
	stsMaxAge     = 31_557_600 * time.Second
	stsMXMax      = 1000
	stsIDBytesMax = 32
)

// ParseSTSPolicy reads a policy as it was fetched. Keys that it does not know
// are passed over, and of a key that must not be repeated the first counts.
func ParseSTSPolicy(text []byte) (STSPolicy, error) {
	var p STSPolicy
	if len(text) > STSPolicyBytesMax {
		return p, fmt.Errorf("MTA-STS policy of more than %d octets", STSPolicyBytesMax)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if strings.Trim(line, " \t") == "" {
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			return STSPolicy{}, fmt.Errorf("MTA-STS policy: line %.60q", line)
		}
		key, value = strings.Trim(key, " \t"), strings.Trim(value, " \t")
		if key != "mx" && seen[key] {
			continue
		}
		seen[key] = true
		if err := p.set(key, value); err != nil {
			return STSPolicy{}, fmt.Errorf("MTA-STS policy: %w", err)
		}
	}
	for _, key := range []string{"version", "mode", "max_age"} {
		if !seen[key] {
			return STSPolicy{}, fmt.Errorf("MTA-STS policy without %s", key)
		}
	}
	if p.Mode != STSModeNone && len(p.MX) == 0 {
		return STSPolicy{}, errors.New("MTA-STS policy without mx")
	}
	return p, nil
}

func (p *STSPolicy) set(key, value string) error {
	switch key {
	case "version":
		if value != "STSv1" {
			return fmt.Errorf("version %.40q", value)
		}
	case "mode":
		for m, name := range stsModeNames {
			if value == name {
				p.Mode = STSMode(m)
				return nil
			}
		}
		return fmt.Errorf("mode %.40q", value)
	case "max_age":
		seconds, err := strconv.ParseUint(value, 10, 63)
		if err != nil || len(value) > 10 {
			return fmt.Errorf("max_age %.40q", value)
		}
		p.MaxAge = min(time.Duration(seconds)*time.Second, stsMaxAge)
	case "mx":
		wild := strings.HasPrefix(value, "*.")
		d, err := mail.ParseDomain(strings.TrimPrefix(value, "*."))
		if err != nil {
			return fmt.Errorf("mx %.300q: %w", value, err)
		}
		if len(p.MX) == stsMXMax {
			return fmt.Errorf("more than %d mx", stsMXMax)
		}
		if wild {
			d = "*." + d
		}
		p.MX = append(p.MX, string(d))
	}
	return nil
}

// Covers reports whether the policy names a host. A leading "*" stands for
// exactly one label (RFC 8461 section 4.1).
func (p STSPolicy) Covers(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, above, ok := strings.Cut(host, ".")
	for _, mx := range p.MX {
		if mx == host || ok && mx == "*."+above {
			return true
		}
	}
	return false
}

// ParseSTSRecord finds the id in the TXT records of _mta-sts.<domain> (RFC 8461
// section 3.1). No id and no error means that the domain has no policy.
func ParseSTSRecord(records []string) (id string, err error) {
	found := 0
	for _, r := range records {
		// "v=STSv1;" begins the record, and whatever does not begin so is about
		// something else.
		rest, ok := strings.CutPrefix(r, "v=STSv1")
		if rest = strings.TrimLeft(rest, " \t"); !ok || rest != "" && rest[0] != ';' {
			continue
		}
		found++
		for field := range strings.SplitSeq(rest, ";") {
			key, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
			if key == "id" && id == "" {
				id = value
			}
		}
	}
	switch {
	case found == 0:
		return "", nil
	case found > 1:
		return "", fmt.Errorf("%d MTA-STS records", found)
	case id == "" || len(id) > stsIDBytesMax || strings.Trim(id, alphanumeric) != "":
		return "", fmt.Errorf("MTA-STS record with id %.40q", id)
	}
	return id, nil
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// An STSStatus is how far it is known what MTA-STS policy a domain has.
type STSStatus uint8

// The statuses.
const (
	// STSUnknown: nobody asked, or the domain seems to have a policy that could
	// not be had.
	STSUnknown STSStatus = iota
	STSNone              // the domain has none
	STSFound
)

// STS is what is known of a domain's MTA-STS policy.
type STS struct {
	Status STSStatus
	Policy STSPolicy
	// Result and Err say why it is not known.
	Result Result
	Err    error
}

// sts decides by the domain's MTA-STS policy.
func (d Decision) sts(h Hop) (Decision, error) {
	d.Source = FromSTS
	p := h.STS.Policy
	switch {
	case h.STS.Status == STSNone:
		d.Source = FromNobody
		return d, nil
	case h.STS.Status != STSFound:
		d.demand(h, nil)
		d.Trouble = &Failure{h.STS.Result, FromSTS, h.Host, h.STS.Err}
		if d.Trouble.Result == "" {
			d.Trouble.Result = STSPolicyFetchError
		}
		return d, nil
	case p.Mode == STSModeNone:
		d.Source = FromNobody
		return d, nil
	}
	var stranger *Failure
	if !p.Covers(h.Host) {
		stranger = &Failure{ValidationFailure, FromSTS, h.Host, fmt.Errorf("not among the mx of the MTA-STS policy: %.300s", strings.Join(p.MX, " "))}
	}
	if p.Mode == STSModeEnforce {
		if stranger != nil {
			return Decision{}, stranger
		}
		d.demand(h, func(s tls.ConnectionState) error { return validFor(s, h) })
		return d, nil
	}
	d.Judge = d.judge(func(s tls.ConnectionState) error { return validFor(s, h) })
	if stranger != nil {
		d.Judge = func(tls.ConnectionState) *Failure { return stranger }
	}
	return d, nil
}

// validFor holds a session against RFC 8461 section 4.2: a public authority, and
// the very name of the hop.
func validFor(s tls.ConnectionState, h Hop) error {
	if s.Version < tls.VersionTLS12 {
		return fmt.Errorf("TLS version %s", tls.VersionName(s.Version))
	}
	return authenticated(s, h.Roots, []string{h.Host}, h.Now)
}
