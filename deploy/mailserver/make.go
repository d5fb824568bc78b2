package mailserver

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// A Make is a mail server by its maker's name for it.
type Make string

// The makes.
const (
	Postfix   Make = "postfix"
	Exim      Make = "exim"
	OpenSMTPD Make = "opensmtpd"
)

// Makes lists all makes.
func Makes() []Make { return []Make{Postfix, Exim, OpenSMTPD} }

// packages are those that .ci/mailservers unpacks.
var packages = map[Make]string{Exim: "exim4-daemon-light", OpenSMTPD: "opensmtpd"}

// Lacking says what this machine lacks to run one; nil when there is nothing.
// unpacked is the directory that .ci/mailservers unpacked into.
func (m Make) Lacking(unpacked string) error {
	debian, ok := packages[m]
	if !ok {
		if _, err := exec.LookPath("postfix"); err != nil {
			return fmt.Errorf("the postfix package is missing: %w", err)
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(unpacked, debian)); err != nil {
		return fmt.Errorf("%s is missing (.ci/mailservers bin/mailservers fetches it): %w", debian, err)
	}
	return nil
}

// Sends reports whether NewSender knows the make.
func (m Make) Sends() bool { return m == Postfix || m == Exim }
