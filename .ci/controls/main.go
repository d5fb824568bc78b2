// Command controls plays every negative control and closes with one line that
// counts. It exits with 1 when one was not caught, when a script fails with its
// switch off, when one did not run to its end or took too long, and when any test
// beside them failed or could not be built.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

// secondsMax is how many seconds of a processor one control may take.
const secondsMax = 20

func main() {
	if !play(os.Stdout, trial.All, secondsMax) {
		os.Exit(1)
	}
}

// play plays the controls and tells about them. It reports whether all were caught.
func play(out io.Writer, all []trial.Control, secondsMax float64) bool {
	var packages []string
	for _, c := range all {
		if !slices.Contains(packages, c.Package) {
			packages = append(packages, c.Package)
		}
	}
	args := append([]string{"test", "-count=1", "-v", "-timeout", "4m", "-tags", "controls", "-run", "^TestControl"}, packages...)
	tests := exec.Command("go", args...)
	var output bytes.Buffer
	tests.Stdout, tests.Stderr = &output, &output
	failed := tests.Run()

	lines := map[string]trial.Line{}
	for text := range strings.Lines(output.String()) {
		if l, ok := trial.Parse(strings.TrimSpace(text)); ok {
			lines[l.Name] = l
		}
	}
	caught := 0
	row := "%-26s  %-40s  %-22s  %6s  %s\n"
	fmt.Fprintf(out, row, "CONTROL", "PROMISE", "LEVEL", "TIME", "VERDICT")
	for _, c := range all {
		l, ran := lines[c.Name]
		switch {
		case !ran:
			l.Verdict = "DID NOT RUN"
		case l.Verdict == trial.Caught && l.Seconds > secondsMax:
			l.Verdict = fmt.Sprintf("CAUGHT AFTER MORE THAN %g s", secondsMax)
		case l.Verdict == trial.Caught:
			caught++
		}
		fmt.Fprintf(out, row, c.Name, c.Promise, c.Level, fmt.Sprintf("%.1fs", l.Seconds), l.Verdict)
		fmt.Fprintf(out, "%28s%s %s: %s\n", "", c.Package, c.Script, l.Noticed)
	}
	if failed != nil {
		fmt.Fprintf(out, "%s\ngo %s: %v\n", output.Bytes(), strings.Join(args, " "), failed)
	}
	fmt.Fprintf(out, "controls=%d caught=%d\n", len(all), caught)
	return failed == nil && caught == len(all)
}
