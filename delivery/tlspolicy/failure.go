package tlspolicy

import (
	"crypto/x509"
	"errors"
	"fmt"
)

// A Result is what went wrong, in the words of RFC 8460 section 4.3.
type Result string

// The results.
const (
	StartTLSNotSupported    Result = "starttls-not-supported"
	CertificateHostMismatch Result = "certificate-host-mismatch"
	CertificateExpired      Result = "certificate-expired"
	CertificateNotTrusted   Result = "certificate-not-trusted"
	ValidationFailure       Result = "validation-failure"
	TLSAInvalid             Result = "tlsa-invalid"
	DNSSECInvalid           Result = "dnssec-invalid"
	STSPolicyFetchError     Result = "sts-policy-fetch-error"
	STSPolicyInvalid        Result = "sts-policy-invalid"
	STSWebPKIInvalid        Result = "sts-webpki-invalid"
)

// A Source is where a policy came from, as RFC 8460 section 4.4 calls it. What
// an operator asked for is none that the domain published.
type Source string

// The sources.
const (
	FromNobody Source = "no-policy-found"
	FromTLSA   Source = "tlsa"
	FromSTS    Source = "sts"
)

// A Failure is a session that is not as it should be. Under a policy that
// demands TLS the mail waits, and somebody should know.
type Failure struct {
	Result Result
	Source Source
	Host   string // the hop, as it is called
	Err    error  // what was seen
}

func (f *Failure) Error() string {
	if f.Err == nil {
		return fmt.Sprintf("TLS policy: %s: %s", f.Host, f.Result)
	}
	return fmt.Sprintf("TLS policy: %s: %s: %v", f.Host, f.Result, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// Explain makes a Failure of why a handshake failed. What Decision.Config
// refused says so itself; anything else, a closed connection, no common version,
// is RFC 8460's validation-failure.
func (d Decision) Explain(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{ValidationFailure, d.Source, d.host, err}
}

// InTheClear is the Failure of a hop that did not offer STARTTLS, or refused it.
func (d Decision) InTheClear() *Failure {
	return &Failure{StartTLSNotSupported, d.Source, d.host, errors.New("no STARTTLS")}
}

// resultOf puts a refusal of crypto/x509 into a word.
func resultOf(err error) Result {
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return CertificateExpired
	case errors.As(err, &name):
		return CertificateHostMismatch
	case errors.As(err, &unknown), errors.Is(err, errNotPinned), errors.Is(err, errNoMatch):
		return CertificateNotTrusted
	}
	return ValidationFailure
}
