package spool

import "fmt"

// mend makes the last segment a whole one, and returns its length. What is
// before the attested offset was synced and is left alone. Behind it lies what
// the crashed process wrote and perhaps could not sync; even if it reads well
// now, that may be the kernel's memory, which a failed fsync calls clean. So:
//
//  1. What is torn between whole records gets a gap record over it, so that
//     nobody takes its header for a body later. What is torn at the end is cut.
//  2. What is whole is written again, the same bytes in the same place, and
//     synced. Only now may it count as held.
//  3. A record is appended that attests all this.
//
// A crash in the middle leaves the same choices to the next Open.
func (c *scan) mend() (end int64, err error) {
	end = c.attested
	suspect := len(c.torn) > 0
	for _, r := range c.records {
		end = max(end, r.end())
		if r.offset >= c.attested && (r.kind != kindAttest || r.attested != r.offset) {
			suspect = true
		}
	}
	for _, d := range c.damage {
		end = max(end, d.to)
	}
	if !suspect {
		return c.size, nil
	}
	end = (end + recordAlign - 1) / recordAlign * recordAlign
	for _, t := range c.torn {
		if t.from >= end || t.to-t.from < recordHeaderBytes {
			continue // cut, or too short to be taken for a record
		}
		gap := record{kind: kindGap, length: t.to - t.from - recordHeaderBytes, offset: t.from, attested: c.attested}
		if err := writeAt(c.file, gap.appendTo(nil, c.mark), t.from); err != nil {
			return 0, fmt.Errorf("cover torn record at %d: %w", t.from, err)
		}
	}
	if err := c.rewrite(c.attested, min(end, c.size)); err != nil {
		return 0, err
	}
	if err := c.file.Truncate(end); err != nil {
		return 0, fmt.Errorf("cut at %d: %w", end, err)
	}
	if err := c.file.Sync(); err != nil {
		return 0, fmt.Errorf("sync: %w", err)
	}
	attest := record{kind: kindAttest, offset: end, attested: end}
	if err := writeAt(c.file, attest.appendTo(nil, c.mark), end); err != nil {
		return 0, fmt.Errorf("attest: %w", err)
	}
	if err := c.file.Sync(); err != nil {
		return 0, fmt.Errorf("sync: %w", err)
	}
	return attest.end(), nil
}

// rewrite writes the bytes of a stretch over themselves.
func (c *scan) rewrite(from, to int64) error {
	buf := make([]byte, scanBufferBytes)
	for from < to {
		b := buf[:min(int64(len(buf)), to-from)]
		if _, err := c.file.ReadAt(b, from); err != nil {
			return fmt.Errorf("read again at %d: %w", from, err)
		}
		if err := writeAt(c.file, b, from); err != nil {
			return fmt.Errorf("write again at %d: %w", from, err)
		}
		from += int64(len(b))
	}
	return nil
}
