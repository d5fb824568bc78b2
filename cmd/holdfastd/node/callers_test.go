package node

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func hashed(t *testing.T, password string) fsm.PasswordHash {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return fsm.PasswordHash(hash)
}

// TestWhoLogsIn: a name and its password call for the domains that have both, and for no
// others; a name may have another password for another domain.
func TestWhoLogsIn(t *testing.T) {
	one, two := hashed(t, "correct horse"), hashed(t, "battery staple")
	domains := []fsm.Domain{
		{Name: "a.test", Callers: fsm.Callers{User: "joe", Secret: one}},
		{Name: "b.test", Callers: fsm.Callers{User: "ann", Secret: one}},
		{Name: "c.test", Callers: fsm.Callers{User: "joe", Secret: two}},
		{Name: "d.test", Callers: fsm.Callers{User: "joe", Secret: one}},
		{Name: "e.test"},
		{Name: "f.test", Callers: fsm.Callers{User: "odd", Secret: "no hash"}},
	}
	for _, c := range []struct {
		user, password string
		want           []mail.Domain
	}{
		{"joe", "correct horse", []mail.Domain{"a.test", "d.test"}},
		{"joe", "battery staple", []mail.Domain{"c.test"}},
		{"ann", "correct horse", []mail.Domain{"b.test"}},
		{"ann", "battery staple", nil}, {"joe", "", nil}, {"joe", "correct horse ", nil},
		{"Joe", "correct horse", nil}, {"", "", nil}, {"nobody", "correct horse", nil},
		{"joe", strings.Repeat("x", 100), nil},
	} {
		got, err := login(t.Context(), domains, c.user, c.password)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q %q: %v, %v, want %v", c.user, c.password, got, err, c.want)
		}
	}
	if got, err := login(t.Context(), domains, "odd", "correct horse"); err == nil || len(got) > 0 {
		t.Errorf("a password that is no hash: %v, %v", got, err)
	}
}

// TestNobodysSecretIsAHash: else a name that nobody has would be told from others by the
// time that it takes.
func TestNobodysSecretIsAHash(t *testing.T) {
	if cost, err := bcrypt.Cost([]byte(nobodysSecret)); err != nil || cost != passwordCost {
		t.Errorf("cost %d, %v", cost, err)
	}
}
