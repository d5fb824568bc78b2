package tlspolicy

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestCounts(t *testing.T) {
	var c Counts
	if len(c.Days()) != 0 || len(c.Read(1)) != 0 {
		t.Fatal("something was counted")
	}
	expired := &Failure{CertificateExpired, FromSTS, "a.test", nil}
	c.Succeed(1, "b.test", FromTLSA)
	c.Succeed(1, "a.test", FromSTS)
	c.Succeed(1, "a.test", FromSTS)
	c.Fail(1, "a.test", expired)
	c.Fail(1, "a.test", expired)
	c.Fail(1, "a.test", &Failure{CertificateExpired, FromSTS, "b.test", nil})
	c.Fail(1, "a.test", &Failure{STSPolicyInvalid, FromNobody, "a.test", nil})
	c.Fail(2, "a.test", expired)
	want := []DomainCount{
		{Domain: "a.test", Source: FromNobody, Failed: 1, Failures: []FailureCount{{FailureKey{STSPolicyInvalid, "a.test"}, 1}}},
		{Domain: "a.test", Source: FromSTS, Succeeded: 2, Failed: 3, Failures: []FailureCount{{FailureKey{CertificateExpired, "a.test"}, 2}, {FailureKey{CertificateExpired, "b.test"}, 1}}},
		{Domain: "b.test", Source: FromTLSA, Succeeded: 1},
	}
	if got := c.Read(1); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := c.Read(2); len(got) != 1 || got[0].Failed != 1 {
		t.Errorf("the next day: %+v", got)
	}
}

// Nothing that a domain, a hop or a clock can do makes them grow without end,
// and no session is lost of the count.
func TestCountsAreBounded(t *testing.T) {
	var c Counts
	for i := range 10 * countsFailuresMax {
		c.Fail(1, "a.test", &Failure{CertificateExpired, FromSTS, fmt.Sprintf("h%d.test", i), nil})
	}
	got := c.Read(1)
	if len(got) != 1 || got[0].Failed != 10*countsFailuresMax || len(got[0].Failures) > countsFailuresMax+1 {
		t.Errorf("%d failures of %d kinds", got[0].Failed, len(got[0].Failures))
	}
	for i := range countsDomainsMax + 100 {
		c.Succeed(2, mail.Domain(fmt.Sprintf("d%d.test", i)), FromNobody)
	}
	total := uint64(0)
	for _, n := range c.Read(2) {
		total += n.Succeeded
	}
	if len(c.Read(2)) > countsDomainsMax+1 || total != countsDomainsMax+100 {
		t.Errorf("%d domains, %d sessions", len(c.Read(2)), total)
	}
	for d := range Day(100) {
		c.Succeed(d, "a.test", FromNobody)
	}
	days := c.Days()
	if len(days) != CountsDaysMax || !slices.IsSorted(days) || days[len(days)-1] != 99 {
		t.Errorf("%v", days)
	}
	c.Succeed(3, "a.test", FromNobody) // long over
	if len(c.Days()) != CountsDaysMax {
		t.Errorf("%v", c.Days())
	}
}

func TestCountsConcurrently(t *testing.T) {
	var c Counts
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 1000 {
				c.Succeed(1, "a.test", FromNobody)
				c.Fail(1, "a.test", &Failure{CertificateExpired, FromNobody, "a.test", nil})
				c.Read(1)
			}
		})
	}
	group.Wait()
	if got := c.Read(1); got[0].Succeeded != 8000 || got[0].Failed != 8000 {
		t.Errorf("%+v", got)
	}
}
