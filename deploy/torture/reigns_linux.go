package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// watchEvery is how often nodes are asked who leads.
const watchEvery = 2 * time.Second

// Reigns are who said of a term that it leads.
type reigns map[uint64]string

// rival notes that a node says so, and returns another that has said so before, "" if
// none has.
func (r reigns) rival(term uint64, node string) string {
	if other, ok := r[term]; ok && other != node {
		return other
	}
	r[term] = node
	return ""
}

// watch looks who leads, until ctx ends. That nobody does is noted only where every node
// that runs has said so: what does not answer may lead.
func (r *run) watch(ctx context.Context) {
	leaders := reigns{}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		who, running := "", len(r.cast.fleet.Running())
		all := r.cast.statuses(ctx)
		for _, s := range all {
			if !s.IsLeader {
				continue
			}
			r.resume(ctx, s)
			if other := leaders.rival(s.Term, s.Node); other != "" {
				r.diary.breach("L6", "term %d has two leaders, %s and %s", s.Term, other, s.Node)
			}
			if s.Quorum {
				who = s.Node
			}
		}
		if ctx.Err() == nil && (who != "" || len(all) >= running) {
			r.diary.leader(who)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// leadingLine is what a node logs once when it begins to lead.
var leadingLine = regexp.MustCompile(`msg=leading .*\bterm=(\d+)`)

// termsLed counts the terms that were led, and says which of them were led more than once,
// as the nodes' logs have it: how often somebody asks who leads decides nothing there.
func termsLed(logs map[string][]byte) (terms int, twice []string) {
	led := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		for _, line := range leadingLine.FindAllSubmatch(logs[name], -1) {
			led[string(line[1])] = append(led[string(line[1])], name)
		}
	}
	for _, term := range slices.Sorted(maps.Keys(led)) {
		if len(led[term]) > 1 {
			twice = append(twice, fmt.Sprintf("term %s was led by %s", term, strings.Join(led[term], " and ")))
		}
	}
	return len(led), twice
}
