package sim

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A node that was away while mail came must get the bodies that it missed:
// otherwise each of these messages stays one disk away from being lost.
func TestNodeThatWasAwayGetsTheBodiesItMissed(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w, err := NewWorld(1, dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for _, name := range nodeNames {
			if err := w.Start(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.PutDomains(ctx); err != nil {
			t.Fatal(err)
		}
		w.Kill("n2")
		if _, err := w.Send(ctx, 20, 2, time.Second); err != nil {
			t.Fatal(err)
		}
		if err := w.Start(ctx, "n2"); err != nil {
			t.Fatal(err)
		}
		want := w.nodes["n1"].node.Member().View().Totals().Live
		for {
			got := w.nodes["n2"].node.Status(ctx).Spool.Bodies
			if got == want {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("after an hour n2 holds %d of %d bodies", got, want)
			}
			time.Sleep(time.Second)
		}
	})
}
