package letter

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// The key that signs letters (RFC 8463) is no secret: anyone may check that
// what arrived still verifies.
func signingKey() ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("holdfast-bench: the key of sender.test"))
	return ed25519.NewKeyFromSeed(seed[:])
}

// signedFields are the fields that the signature covers, as "h=" names them.
var signedFields = []string{"from", "to", "subject", "date", "message-id", "mime-version"}

// sign puts a DKIM-Signature in front of a message: relaxed canonicalization
// of the header, simple of the body (RFC 6376 section 3.4).
func sign(header, body string) []byte {
	hash := sha256.Sum256(simpleBody([]byte(body)))
	field := "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/simple; d=sender.test;\r\n\ts=bench; h=" +
		strings.Join(signedFields, ":") + ";\r\n\tbh=" + base64.StdEncoding.EncodeToString(hash[:]) + ";\r\n\tb="
	digest := sha256.Sum256(signedOctets(splitFields(header), field))
	signature := base64.StdEncoding.EncodeToString(ed25519.Sign(signingKey(), digest[:]))
	return []byte(field + signature + "\r\n" + header + "\r\n" + body)
}

// Verify checks the DKIM signature of sender.test in a message. A message
// without one is in order: most letters have none.
func Verify(message []byte) error {
	header, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
	fields := splitFields(string(header) + "\r\n")
	for _, f := range fields {
		if name, _, _ := strings.Cut(f, ":"); strings.EqualFold(name, "DKIM-Signature") {
			return verify(fields, f, body)
		}
	}
	return nil
}

func verify(fields []string, field string, body []byte) error {
	bare, signature, ok := strings.Cut(field, "\tb=")
	if !ok {
		return errors.New("dkim: no signature in the field")
	}
	_, bh, ok := strings.Cut(bare, "bh=")
	if !ok {
		return errors.New("dkim: no body hash in the field")
	}
	bh, _, _ = strings.Cut(bh, ";")
	hash := sha256.Sum256(simpleBody(body))
	if bh != base64.StdEncoding.EncodeToString(hash[:]) {
		return errors.New("dkim: the body was changed")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(signature))
	if err != nil {
		return fmt.Errorf("dkim: signature: %w", err)
	}
	digest := sha256.Sum256(signedOctets(fields, bare+"\tb="))
	if !ed25519.Verify(signingKey().Public().(ed25519.PublicKey), digest[:], raw) {
		return errors.New("dkim: the header was changed")
	}
	return nil
}

// signedOctets is what the signature is made over: the signed fields, then the
// signature's own field with an empty "b=" and no CRLF (RFC 6376 section 3.7).
func signedOctets(fields []string, own string) []byte {
	var b bytes.Buffer
	for _, name := range signedFields {
		// Of several fields of one name the lowest is signed first.
		for i := len(fields) - 1; i >= 0; i-- {
			if n, _, _ := strings.Cut(fields[i], ":"); strings.EqualFold(strings.TrimSpace(n), name) {
				b.WriteString(relaxedField(fields[i]) + "\r\n")
				break
			}
		}
	}
	b.WriteString(relaxedField(own))
	return b.Bytes()
}

// relaxedField is RFC 6376 section 3.4.2, without the final CRLF.
func relaxedField(field string) string {
	name, value, _ := strings.Cut(field, ":")
	return strings.ToLower(strings.TrimSpace(name)) + ":" + strings.Join(strings.Fields(value), " ")
}

// simpleBody is RFC 6376 section 3.4.3: one CRLF in place of all empty lines
// at the end.
func simpleBody(body []byte) []byte {
	for bytes.HasSuffix(body, []byte("\r\n")) {
		body = body[:len(body)-2]
	}
	return append(bytes.Clone(body), '\r', '\n')
}

// splitFields splits a header into fields, folding kept, without final CRLFs.
func splitFields(header string) []string {
	var fields []string
	for line := range strings.SplitAfterSeq(header, "\r\n") {
		if line == "" {
			continue
		}
		if (line[0] == ' ' || line[0] == '\t') && len(fields) > 0 {
			fields[len(fields)-1] += line
		} else {
			fields = append(fields, line)
		}
	}
	for i := range fields {
		fields[i] = strings.TrimSuffix(fields[i], "\r\n")
	}
	return fields
}
