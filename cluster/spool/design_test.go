package spool

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// DESIGN.md draws what the code writes.
func TestDesignDrawsTheRecords(t *testing.T) {
	b, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	design := string(b)
	for _, line := range []string{
		fmt.Sprintf("*Body*, kind %d. The label is %d bytes", kindBody, bodyLabelBytes),
		fmt.Sprintf("*Deletions*, kind %d. No label; the payload is up to %d,%03d entries of %d bytes", kindDeletions, deletionsPerRecordMax/1000, deletionsPerRecordMax%1000, deletionBytes),
		fmt.Sprintf("A body of n octets takes 80 + n bytes, rounded up to 8, and %d in the index", roomOf(8)-88),
		fmt.Sprintf("(at most %d,%03d, or %d MiB and the last body)", batchJobsMax/1000, batchJobsMax%1000, batchBytesMax>>20),
		fmt.Sprintf("a segment less than %d %% of which is live", 100/compactBelow),
		fmt.Sprintf("%.1f x what is live + %d segments (%d MiB)", compactFactor, compactSlack, compactSlack*64),
		fmt.Sprintf("%d MiB at a time (or one larger body), at %d MiB a second", compactStepBytes>>20, compactRate>>20),
		fmt.Sprintf("one mebibyte written every %d ms", prewriteEvery.Milliseconds()),
	} {
		if !strings.Contains(design, line) {
			t.Errorf("DESIGN.md does not say %q", line)
		}
	}
}
