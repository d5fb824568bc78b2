package mailserver

import (
	"os"
	"strings"

	"github.com/holdfast-mx/holdfast/deploy/cell"
)

// hostsName is the name of all hosts that a sender hands mail to.
const hostsName = "mx.holdfast.test"

// nameHosts gives the name to hosts, in this cell.
func nameHosts(file string, hosts []string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text := string(old)
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	for _, h := range hosts {
		text += h + " " + hostsName + "\n"
	}
	return cell.Lay(file, text)
}
