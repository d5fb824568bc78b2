// Command controls plays every negative control and closes with one line that
// counts. It exits with 1 when one was not caught, when a script fails with its
// switch off, or when one did not run.
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func main() {
	var packages []string
	for _, c := range trial.All {
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
	fmt.Printf(row, "CONTROL", "PROMISE", "LEVEL", "TIME", "VERDICT")
	for _, c := range trial.All {
		l, ran := lines[c.Name]
		if !ran {
			l.Verdict = "DID NOT RUN"
		}
		if l.Verdict == trial.Caught {
			caught++
		}
		fmt.Printf(row, c.Name, c.Promise, c.Level, fmt.Sprintf("%.1fs", l.Seconds), l.Verdict)
		fmt.Printf("%28s%s %s: %s\n", "", c.Package, c.Script, l.Noticed)
	}
	if failed != nil {
		fmt.Printf("%s\ngo %s: %v\n", output.Bytes(), strings.Join(args, " "), failed)
	}
	fmt.Printf("controls=%d caught=%d\n", len(trial.All), caught)
	if failed != nil || caught != len(trial.All) {
		os.Exit(1)
	}
}
