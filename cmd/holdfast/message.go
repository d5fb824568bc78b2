package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The JSON of "queue list" and "queue show". Field names are an interface.
type (
	queueJSON struct {
		Messages []summaryJSON `json:"messages"`
		Next     string        `json:"next"` // for --after; empty on the last page
		StaleMS  *int64        `json:"stale_ms"`
		Quorum   bool          `json:"quorum"`
	}
	summaryJSON struct {
		QueueID           string   `json:"queue_id"`
		From              string   `json:"from"`
		Size              int64    `json:"size"`
		Received          string   `json:"received"` // RFC 3339
		Node              string   `json:"node"`
		Domains           []string `json:"domains"`
		Recipients        uint32   `json:"recipients"`
		Queued            uint32   `json:"queued"`
		Held              uint32   `json:"held"`
		Attempts          uint32   `json:"attempts"`
		Leased            bool     `json:"leased"`
		PossibleDuplicate bool     `json:"possible_duplicate"`
		LastReply         string   `json:"last_reply"`
	}
	messageJSON struct {
		QueueID           string          `json:"queue_id"`
		From              string          `json:"from"`
		Size              int64           `json:"size"`
		SHA256            string          `json:"sha256"`
		Received          string          `json:"received"` // RFC 3339
		Node              string          `json:"node"`
		Client            string          `json:"client"`
		Hello             string          `json:"hello"`
		Protocol          string          `json:"protocol"`
		TLS               string          `json:"tls"`
		Ret               string          `json:"ret"`
		EnvelopeID        string          `json:"envelope_id"`
		EightBit          bool            `json:"eight_bit"`
		SMTPUTF8          bool            `json:"smtputf8"`
		Settled           bool            `json:"settled"`
		PossibleDuplicate bool            `json:"possible_duplicate"`
		Finished          bool            `json:"finished"`
		Aliases           []string        `json:"aliases"`
		Recipients        []recipientJSON `json:"recipients"`
		Parts             []partJSON      `json:"parts"`
		StaleMS           *int64          `json:"stale_ms"`
		Quorum            bool            `json:"quorum"`
	}
	recipientJSON struct {
		Path     string   `json:"path"`
		Domain   string   `json:"domain"`
		State    string   `json:"state"`
		Reply    string   `json:"reply"`
		Reason   string   `json:"reason"`
		Notify   []string `json:"notify"`
		Original string   `json:"original"`
		Late     bool     `json:"delivered_late"`
		Report   string   `json:"report"` // that its sender is still to get, or empty
	}
	partJSON struct {
		Domain     string `json:"domain"`
		LeaseToken uint64 `json:"lease_token"`
		Holder     string `json:"holder"`
		Begun      bool   `json:"begun"`
		Attempts   uint32 `json:"attempts"`
		Waiting    string `json:"waiting"`
		RetryInMS  int64  `json:"retry_in_ms"`
		DoubtInMS  int64  `json:"doubt_in_ms"`
		// ExpiresInMS is until what is queued is held; 0 for never.
		ExpiresInMS int64 `json:"expires_in_ms"`
	}
)

func toSummariesJSON(messages []*adminpb.MessageSummary) []summaryJSON {
	js := []summaryJSON{}
	for _, m := range messages {
		js = append(js, summaryJSON{
			QueueID: m.GetQueueId(), From: m.GetFrom(), Size: m.GetSize(), Received: rfc3339(m.GetReceivedUnix()), Node: m.GetNode(),
			Domains: list(m.GetDomains()), Recipients: m.GetRecipients(), Queued: m.GetQueued(), Held: m.GetHeld(), Attempts: m.GetAttempts(),
			Leased: m.GetLeased(), PossibleDuplicate: m.GetPossibleDuplicate(), LastReply: m.GetLastReply(),
		})
	}
	return js
}

func toMessageJSON(m *adminpb.Message, f *adminpb.Freshness) messageJSON {
	j := messageJSON{
		QueueID: m.GetQueueId(), From: m.GetFrom(), Size: m.GetSize(), SHA256: m.GetSha256(), Received: rfc3339(m.GetReceivedUnix()),
		Node: m.GetNode(), Client: m.GetClient(), Hello: m.GetHello(), Protocol: m.GetProtocol(), TLS: m.GetTls(),
		Ret: m.GetRet(), EnvelopeID: m.GetEnvelopeId(), EightBit: m.GetEightBit(), SMTPUTF8: m.GetSmtputf8(),
		Settled: m.GetSettled(), PossibleDuplicate: m.GetPossibleDuplicate(), Finished: m.GetFinished(), Aliases: list(m.GetAliases()),
		Recipients: []recipientJSON{}, Parts: []partJSON{}, StaleMS: staleMS(f), Quorum: f.GetQuorum(),
	}
	for _, r := range m.GetRecipients() {
		j.Recipients = append(j.Recipients, recipientJSON{
			Path: r.GetPath(), Domain: r.GetDomain(), State: stateWord(r.GetState()), Reply: r.GetReply(), Reason: r.GetReason(),
			Notify: list(r.GetNotify()), Original: r.GetOriginal(), Late: r.GetDeliveredLate(),
			Report: r.GetReport(),
		})
	}
	for _, p := range m.GetParts() {
		j.Parts = append(j.Parts, partJSON{
			Domain: p.GetDomain(), LeaseToken: p.GetLeaseToken(), Holder: p.GetHolder(), Begun: p.GetBegun(), Attempts: p.GetAttempts(),
			Waiting: p.GetWaiting(), RetryInMS: p.GetRetryInMs(), DoubtInMS: p.GetDoubtInMs(),
			ExpiresInMS: p.GetExpiresInMs(),
		})
	}
	return j
}

func (a *app) printQueue(messages []*adminpb.MessageSummary) error {
	if len(messages) == 0 {
		_, err := fmt.Fprintln(a.out, "No messages.")
		return err
	}
	t := newTable(a.out, "QUEUE ID", "RECEIVED", "SIZE", "STATE", "TRIED", "FROM", "DOMAINS", "LAST REPLY")
	for _, m := range messages {
		t.row(m.GetQueueId(), moment(m.GetReceivedUnix()), size(m.GetSize()), summaryState(m), count(m.GetAttempts()),
			"<"+m.GetFrom()+">", strings.Join(m.GetDomains(), " "), m.GetLastReply())
	}
	return t.flush()
}

// summaryState is what a message is doing, in a cell.
func summaryState(m *adminpb.MessageSummary) string {
	var parts []string
	if n := m.GetQueued(); n > 0 {
		word := "queued"
		if m.GetLeased() {
			word = "leased"
		}
		parts = append(parts, fmt.Sprintf("%d %s", n, word))
	}
	if n := m.GetHeld(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d held", n))
	}
	if n := m.GetRecipients() - m.GetQueued() - m.GetHeld(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d ended", n))
	}
	return strings.Join(parts, ", ")
}

func (a *app) printMessage(asked string, m *adminpb.Message) error {
	t := newTable(a.out)
	id := m.GetQueueId()
	if id != asked {
		id += " (asked for its repeat " + asked + ")"
	}
	t.row("Queue id", id)
	t.row("From", "<"+m.GetFrom()+">")
	t.row("Size", fmt.Sprintf("%s (%d octets), SHA-256 %s", size(m.GetSize()), m.GetSize(), m.GetSha256()))
	tls := m.GetTls()
	if tls == "" {
		tls = "in the clear"
	}
	t.row("Received", moment(m.GetReceivedUnix())+" by "+m.GetNode())
	t.row("Client", fmt.Sprintf("%s [%s], %s, %s", m.GetHello(), m.GetClient(), m.GetProtocol(), tls))
	if p := parameters(m); p != "" {
		t.row("Parameters", p)
	}
	settled := "no: nobody proved that the client read our 250; it may come again"
	if m.GetSettled() {
		settled = "yes: the client read our 250"
	}
	t.row("Settled", settled)
	if m.GetPossibleDuplicate() {
		t.row("Duplicate", "possible: an attempt ended without a reply that could be recorded")
	}
	if len(m.GetAliases()) > 0 {
		t.row("Repeats", strings.Join(m.GetAliases(), " "))
	}
	if m.GetFinished() {
		t.row("Finished", "yes: its body is no longer needed")
	}
	if err := t.flush(); err != nil {
		return err
	}

	fmt.Fprintln(a.out)
	t = newTable(a.out, "RECIPIENT", "STATE", "LAST REPLY", "REASON")
	for _, r := range m.GetRecipients() {
		state := stateWord(r.GetState())
		if r.GetDeliveredLate() {
			state += ", delivered late"
		}
		if r.GetReport() != "" {
			state += ", report due: " + r.GetReport()
		}
		t.row("<"+r.GetPath()+">", state, r.GetReply(), r.GetReason())
	}
	if err := t.flush(); err != nil {
		return err
	}

	fmt.Fprintln(a.out)
	t = newTable(a.out, "TO DOMAIN", "TRIED", "LEASE OF", "TOKEN", "FINAL DOT", "WAITS FOR", "HELD IN")
	for _, p := range m.GetParts() {
		token, dot := "", ""
		if p.GetLeaseToken() != 0 {
			token, dot = count(p.GetLeaseToken()), "not sent"
			if p.GetBegun() {
				dot = "may be sent"
			}
		}
		expires := ""
		if ms := p.GetExpiresInMs(); ms > 0 {
			expires = (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
		}
		t.row(p.GetDomain(), count(p.GetAttempts()), p.GetHolder(), token, dot, p.GetWaiting(), expires)
	}
	return t.flush()
}

// parameters are the ESMTP parameters of the envelope as the sender gave them.
func parameters(m *adminpb.Message) string {
	var all []string
	if m.GetEightBit() {
		all = append(all, "BODY=8BITMIME")
	}
	if m.GetSmtputf8() {
		all = append(all, "SMTPUTF8")
	}
	if m.GetRet() != "" {
		all = append(all, "RET="+m.GetRet())
	}
	if m.GetEnvelopeId() != "" {
		all = append(all, "ENVID="+m.GetEnvelopeId())
	}
	return strings.Join(all, " ")
}
