package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// callerPinsMax is how many keys the callers of one domain have at most.
const callerPinsMax = 16

// CallerPins reads the keys of callers.
func (a adminCluster) CallerPins(pins []string) ([][32]byte, error) {
	if len(pins) > callerPinsMax {
		return nil, fmt.Errorf("%d keys, and at most %d are allowed", len(pins), callerPinsMax)
	}
	var all [][32]byte
	for _, text := range pins {
		pin, err := tlspolicy.ParsePin(text)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, [32]byte(pin)) {
			all = append(all, pin)
		}
	}
	return all, nil
}

const (
	// passwordBytesMin and passwordBytesMax bound the password of a caller; bcrypt looks
	// at no more than the latter.
	passwordBytesMin = 8
	passwordBytesMax = 72
	// passwordCost is how dear it is to try a password: 2^12 rounds of bcrypt, some
	// tenths of a second.
	passwordCost = 12
	// passwordsMax is how many passwords one name may have, at different domains: each
	// that is not right costs as much.
	passwordsMax = 4
)

// CallerSecret salts and hashes the password of a caller. A password that the name has
// for another domain already gets the same hash: who logs in with it calls for both.
func (a adminCluster) CallerSecret(user, password string) (fsm.PasswordHash, error) {
	switch {
	case len(password) < passwordBytesMin || len(password) > passwordBytesMax:
		return "", fmt.Errorf("want %d to %d octets", passwordBytesMin, passwordBytesMax)
	case strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", errors.New("want no control characters")
	}
	known := secretsOf(a.n.member.View().Domains(), user)
	for _, secret := range known {
		if bcrypt.CompareHashAndPassword([]byte(secret), []byte(password)) == nil {
			return secret, nil
		}
	}
	if len(known) >= passwordsMax {
		return "", fmt.Errorf("%s has %d different passwords at other domains already: use one of them, or another name", user, len(known))
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), passwordCost)
	return fsm.PasswordHash(hash), err
}

// secretsOf returns the different passwords that a name has.
func secretsOf(domains []fsm.Domain, user string) []fsm.PasswordHash {
	var all []fsm.PasswordHash
	for _, d := range domains {
		if user != "" && d.Callers.User == user && !slices.Contains(all, d.Callers.Secret) {
			all = append(all, d.Callers.Secret)
		}
	}
	return all
}

// nobodysSecret is compared with what is tried for a name that nobody has, so that the
// time that it takes tells no names. Whatever it is the hash of lets nobody in.
const nobodysSecret = "$2a$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW"

// login returns the relay domains whose mail a name and password may call for, sorted;
// none where the name or the password is wrong.
func login(ctx context.Context, domains []fsm.Domain, user, password string) ([]mail.Domain, error) {
	known := secretsOf(domains, user)
	known = known[:min(len(known), passwordsMax)]
	var right []fsm.PasswordHash
	for _, secret := range known {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		switch err := bcrypt.CompareHashAndPassword([]byte(secret), []byte(password)); {
		case err == nil:
			right = append(right, secret)
		case !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword):
			return nil, fmt.Errorf("password of %q: %w", user, err)
		}
	}
	if len(known) == 0 {
		_ = bcrypt.CompareHashAndPassword([]byte(nobodysSecret), []byte(password))
	}
	var mine []mail.Domain
	for _, d := range domains {
		if d.Callers.User == user && slices.Contains(right, d.Callers.Secret) {
			mine = append(mine, d.Name)
		}
	}
	return mine, nil
}
