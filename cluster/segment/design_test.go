package segment

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// DESIGN.md draws what the code writes.
func TestDesignDrawsTheFormat(t *testing.T) {
	b, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	design := string(b)
	for _, line := range []string{
		fmt.Sprintf("    0      header, %d bytes\n", headerBytes),
		fmt.Sprintf("    %d    seal, %d bytes; zeros until the segment is sealed\n", sealOffset, sealBytes),
		fmt.Sprintf("    %d   the same page again", pageBytes),
		fmt.Sprintf("    %d   record, record, record", FirstOffset),
		fmt.Sprintf("    0   8  %q\n    8   4  version, %d ", headerMagic, formatVersion),
		fmt.Sprintf("    0   8  %q\n    8   8  mark\n", sealMagic),
		fmt.Sprintf("at an offset that is a multiple of %d:", recordAlign),
		fmt.Sprintf("0x%x index, 0x%x gap", kindIndex, kindGap),
		fmt.Sprintf("length of the label, at most %d\n", LabelBytesMax),
		fmt.Sprintf("    %d     label, payload, zeros up to a multiple of %d\n", recordHeaderBytes, recordAlign),
		fmt.Sprintf("    %d     label\n", indexEntryBytes),
		fmt.Sprintf("in a buffer of up to %d MiB", arenaBytesMax>>20),
		fmt.Sprintf("(%d pieces or\n%d MiB at a time)", piecesMax, writeBytesMax>>20),
		fmt.Sprintf("at most %d MiB; a segment is full when that is", indexBytesMax>>20),
		fmt.Sprintf("more than %d MiB longer than its records is cut", trimBytes>>20),
		fmt.Sprintf("a batch of at most %d KiB that lies\nin the buffer is written in sectors", directBytesMax>>10),
		fmt.Sprintf("room set aside. So there is, %d MiB at a time", allocateBytes>>20),
		fmt.Sprintf("a batch of at most %d KiB, which is less than the journal's", aheadBatchMax>>10),
		fmt.Sprintf("in a row before them, and at most %d KiB", aheadBytesMax>>10),
		fmt.Sprintf("at most %d GiB, a payload", fileBytesMax>>30),
	} {
		if !strings.Contains(design, line) {
			t.Errorf("DESIGN.md does not say %q", line)
		}
	}
}
