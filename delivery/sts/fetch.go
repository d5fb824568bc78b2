package sts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// fetchTimeout is for all of one fetch. RFC 8461 section 3.3 suggests a minute;
// a delivery waits for it, and a failed fetch is repeated soon enough.
const fetchTimeout = 20 * time.Second

// Fetch gets a domain's policy as its host serves it now, whether or not it is
// announced, and neither asks the cache nor fills it: for who wants to see what
// others see.
func (s *Source) Fetch(ctx context.Context, domain mail.Domain) (tlspolicy.STSPolicy, error) {
	_, policy, _, err := s.fetch(ctx, domain)
	return policy, err
}

// fetch gets and reads a domain's policy. An error comes with RFC 8460's word
// for it.
func (s *Source) fetch(ctx context.Context, domain mail.Domain) ([]byte, tlspolicy.STSPolicy, tlspolicy.Result, error) {
	fail := func(r tlspolicy.Result, err error) ([]byte, tlspolicy.STSPolicy, tlspolicy.Result, error) {
		return nil, tlspolicy.STSPolicy{}, r, fmt.Errorf("fetch MTA-STS policy of %s: %w", domain, err)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mta-sts."+string(domain)+"/.well-known/mta-sts.txt", nil)
	if err != nil {
		return fail(tlspolicy.STSPolicyFetchError, err)
	}
	response, err := s.c.Client.Do(request)
	if err != nil {
		var unverified *tls.CertificateVerificationError
		if errors.As(err, &unverified) {
			return fail(tlspolicy.STSWebPKIInvalid, err)
		}
		return fail(tlspolicy.STSPolicyFetchError, err)
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode != http.StatusOK: // A redirection, too.
		return fail(tlspolicy.STSPolicyFetchError, fmt.Errorf("status %.40q", response.Status))
	case response.TLS == nil: // A transport that took another way.
		return fail(tlspolicy.STSWebPKIInvalid, errors.New("not over TLS"))
	}
	if media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || !strings.EqualFold(media, "text/plain") {
		return fail(tlspolicy.STSPolicyFetchError, fmt.Errorf("content type %.60q", response.Header.Get("Content-Type")))
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, tlspolicy.STSPolicyBytesMax+1))
	if err != nil {
		return fail(tlspolicy.STSPolicyFetchError, err)
	}
	policy, err := tlspolicy.ParseSTSPolicy(text)
	if err != nil {
		return fail(tlspolicy.STSPolicyInvalid, err)
	}
	return text, policy, "", nil
}
