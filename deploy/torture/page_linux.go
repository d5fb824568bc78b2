package main

import (
	"cmp"
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"
	"time"
)

// The timeline, in units of the picture.
const (
	chartWidth  = 1000
	chartHeight = 120 // of the curves
	barHeight   = 12
)

// page is the report: counts, the histogram of copies, and a timeline.
func (r *run) page(v verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!doctype html><meta charset=utf-8><title>torture seed %d</title>\n", r.o.seed)
	b.WriteString("<style>body{font:14px sans-serif;margin:2em;max-width:1040px}td{padding:0 1em 0 0}svg text{font:10px sans-serif}</style>\n")
	result := "All promises held."
	if len(v.broken) > 0 {
		result = fmt.Sprintf("Broken promises: %d.", len(v.broken))
	}
	fmt.Fprintf(&b, "<h1>Seed %d: %s</h1>\n<p><code>%s</code><p>Repeat with <code>%s</code>. What repeats is the plan of faults and the mail; the order in which things happen is the machine's.\n", r.o.seed, result, v, html.EscapeString(r.o.again()))
	if len(v.broken) > 0 {
		b.WriteString("<ul>\n")
		for _, t := range v.broken {
			fmt.Fprintf(&b, "<li>%s\n", html.EscapeString(t))
		}
		b.WriteString("</ul>\n")
	}
	b.WriteString("<h2>Timeline</h2>\n" + r.timeline())
	stats, packets := r.load.stats(), r.cast.fabric.Counts()
	b.WriteString("<h2>Counts</h2>\n<table>\n")
	row := func(what string, value any) { fmt.Fprintf(&b, "<tr><td>%s<td>%v\n", what, value) }
	row("nodes", r.o.nodes)
	row("mail server of another maker", r.o.peer)
	row("recipients with a 250", v.report.Accepted)
	row("of those, arrived as they were sent", v.report.Delivered)
	row("lost", v.report.Lost)
	row("altered", v.report.Altered)
	row("delivered though refused", v.report.Refused)
	row("refused by the primary for good, and the sender told", fmt.Sprintf("%d of %d to be told", v.notices.Told, v.notices.Due))
	row("refused by the primary for good, nobody to be told, held", v.notices.Silent)
	row("copies of reports beyond the first, and excused", fmt.Sprintf("%d, %d", v.notices.Extra, v.notices.Bound))
	row("held by the guard, and released", r.released)
	for _, domain := range domains() {
		row("senders of "+domain+" are told", r.cast.bounce[domain])
	}
	row("copies beyond the first", v.copies.Extra)
	row("copies that what happened excuses", v.copies.Bound)
	row("recipients whose dot got no reply, each time", stats.NoReply)
	row("recipients that were put off, each time", stats.Deferred)
	row("250s of the primary that nobody may have read", r.cast.unread)
	row("no 250 at all, and arrived all the same", v.report.UnansweredDelivered)
	row("time to the 250 behind a final dot", stats.Dot)
	row("time to any reply, or to the end of the connection in its place", stats.Wait)
	row("of those, longer than a node may take, for whatever reason", len(r.load.waits))
	row("stretches in which this harness stood still", len(r.diary.stalls))
	row("asked to relay, and refused", fmt.Sprintf("%d, %d", r.relayAsked, r.relayAsked-r.relayAgreed))
	row("packets passed, cut, lost, delayed", fmt.Sprintf("%d, %d, %d, %d", packets.Passed, packets.Cut, packets.Lost, packets.Delayed))
	for _, n := range r.cast.fleet.Nodes {
		row(n.Name, fmt.Sprintf("started %d times, %.0f MiB at most", n.Starts(), float64(n.PeakRSS())/(1<<20)))
	}
	b.WriteString("</table>\n<h2>Copies</h2>\n<table><tr><td>copies<td>recipients\n")
	for copies, n := range v.copies.Histogram {
		if n > 0 || copies < 2 {
			row(fmt.Sprint(copies), n)
		}
	}
	b.WriteString("</table>\n<h2>Faults</h2>\n<table><tr><td>kind<td>begun, and seen to strike\n")
	for _, k := range slices.Sorted(maps.Keys(r.nem.done)) {
		row(html.EscapeString(string(k)), fmt.Sprintf("%d, %d", r.nem.done[k], r.nem.seen[k]))
	}
	for _, k := range r.plan.Swarm {
		if why := cmp.Or(r.nem.lacking(k), r.cast.peer.cannot(k)); why != "" {
			row(html.EscapeString(string(k)), "left out: "+html.EscapeString(why))
		}
	}
	b.WriteString("</table>\n")
	return b.String()
}

// timeline draws 250s and deliveries a second, who led, and what was broken.
func (r *run) timeline() string {
	d := r.diary
	d.mu.Lock()
	defer d.mu.Unlock()
	seconds := int(time.Since(d.begin).Seconds()) + 1
	x := func(t time.Time) float64 { return chartWidth * t.Sub(d.begin).Seconds() / float64(seconds) }
	perSecond := func(moments []time.Time) []int {
		counts := make([]int, seconds)
		for _, m := range moments {
			counts[min(seconds-1, max(0, int(m.Sub(d.begin).Seconds())))]++
		}
		return counts
	}
	acks, arrivals := perSecond(d.acks), perSecond(d.arrivals)
	most := max(1, slices.Max(acks), slices.Max(arrivals))
	curve := func(counts []int, color string) string {
		var points []string
		for s, n := range counts {
			points = append(points, fmt.Sprintf("%.1f,%.1f", chartWidth*(float64(s)+0.5)/float64(seconds), chartHeight-float64(chartHeight*n)/float64(most)))
		}
		return fmt.Sprintf("<polyline fill=none stroke=%s points=%q />\n", color, strings.Join(points, " "))
	}
	height := chartHeight + barHeight*(len(d.faults)+4)
	var b strings.Builder
	fmt.Fprintf(&b, "<svg xmlns=http://www.w3.org/2000/svg viewBox=\"0 0 %d %d\" width=%d height=%d>\n", chartWidth, height, chartWidth, height)
	for s := 0; s < seconds; s += 30 {
		at := chartWidth * float64(s) / float64(seconds)
		fmt.Fprintf(&b, "<line x1=%.1f x2=%.1f y1=0 y2=%d stroke=#ddd /><text x=%.1f y=%d fill=#888>%d s</text>\n", at, at, height, at+2, height-2, s)
	}
	b.WriteString(curve(arrivals, "#d08000") + curve(acks, "#0060c0"))
	fmt.Fprintf(&b, "<text x=2 y=10 fill=#0060c0>250s a second (%d at most)</text><text x=2 y=22 fill=#d08000>deliveries a second</text>\n", most)
	bar := func(row int, from, to time.Time, color, label string) {
		y := chartHeight + barHeight*row
		fmt.Fprintf(&b, "<rect x=%.1f y=%d width=%.1f height=%d fill=%s /><text x=%.1f y=%d>%s</text>\n",
			x(from), y+2, max(1, x(to)-x(from)), barHeight-3, color, x(from)+2, y+barHeight-2, html.EscapeString(label))
	}
	for _, l := range d.leads {
		if l.what == "" {
			bar(1, l.from, l.to, "#f4b6b6", "")
		} else {
			bar(1, l.from, l.to, "#cfe3cf", l.what)
		}
	}
	for i, f := range d.faults {
		to := f.to
		if to.IsZero() {
			to = time.Now()
		}
		bar(i+3, f.from, to, "#e8d2d2", f.what)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
