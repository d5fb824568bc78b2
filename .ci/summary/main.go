// Command summary reads `go test -json` on standard input, shows each package
// as it ends and the whole output of what failed, and closes with one line that
// counts. It exits with 1 when a test or a package failed, or none ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// An event is one line of test2json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

func main() {
	var passed, failed, skipped, broken int
	output := map[string]*strings.Builder{} // by package and test
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // a build error comes as plain text
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if output[key] == nil {
				output[key] = new(strings.Builder)
			}
			output[key].WriteString(e.Output)
			continue
		case "build-fail":
			broken++
			fmt.Print(output[key])
		case "pass", "fail", "skip":
		default:
			continue
		}
		switch {
		case e.Test == "" && e.Action == "fail":
			broken++
			fmt.Printf("FAIL  %-60s %6.1fs\n", e.Package, e.Elapsed)
			if text := output[key]; text != nil {
				fmt.Print(text)
			}
			// Of a process that has died, the test that ran has not ended.
			for of, text := range output {
				if test, ok := strings.CutPrefix(of, e.Package+" "); ok && test != "" {
					fmt.Printf("--- NOT ENDED %s %s\n%s", e.Package, test, text)
				}
			}
		case e.Test == "" && e.Action == "pass":
			fmt.Printf("ok    %-60s %6.1fs\n", e.Package, e.Elapsed)
		case e.Test == "":
		case e.Action == "fail":
			failed++
			fmt.Printf("--- FAIL %s %s\n%s", e.Package, e.Test, output[key])
		case e.Action == "skip":
			skipped++
			fmt.Printf("--- SKIP %s %s\n%s", e.Package, e.Test, output[key])
		default:
			passed++
		}
		delete(output, key)
	}
	if broken > 0 && failed == 0 {
		failed = broken
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}
