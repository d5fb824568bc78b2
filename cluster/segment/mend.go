package segment

import "fmt"

// mend makes a segment that was being written a sealed one, and returns its
// seal. What is before the attested offset was synced and is left alone.
// Behind it lies what the crashed process wrote and perhaps could not sync; even
// if it reads well now, that may be the kernel's memory, which a failed fsync
// calls clean. So:
//
//  1. What is torn between whole records gets a gap record over it, so that
//     nobody takes its header for a record later. What is torn at the end is cut
//     by step 3.
//  2. What is whole is written again, the same bytes in the same place, and
//     synced. Only now may it count as durable.
//  3. The index is written behind it, the file is cut there, and synced. Then
//     the seal is written and synced.
//
// A crash in the middle leaves the same choices to the next Open.
func (c *scan) mend(h header) (sealed seal, err error) {
	end := c.attested
	var index []byte
	var suspects []region
	whole := c.records[:0]
	for _, r := range c.records {
		end = max(end, r.end())
		suspect := region{r.offset, min(r.end(), c.size)}
		if r.kind == kindGap {
			suspect.to = r.payload()
		} else {
			whole = append(whole, r)
			index = appendIndexEntry(index, r.record)
		}
		if r.offset >= c.attested {
			suspects = append(suspects, suspect)
		}
	}
	c.records = whole
	for _, d := range c.damage {
		end = max(end, (d.to+recordAlign-1)/recordAlign*recordAlign)
	}
	for _, t := range c.torn {
		if t.from >= end || t.to-t.from < recordHeaderBytes {
			continue // cut, or too short to be taken for a record
		}
		gap := record{kind: kindGap, length: t.to - t.from - recordHeaderBytes, offset: t.from, attested: c.attested}
		if err := writeAt(c.file, gap.appendTo(nil, c.mark), t.from); err != nil {
			return seal{}, fmt.Errorf("cover torn record at %d: %w", t.from, err)
		}
	}
	if err := c.rewrite(suspects); err != nil {
		return seal{}, err
	}
	if err := c.file.Sync(); err != nil {
		return seal{}, fmt.Errorf("sync: %w", err)
	}
	r := record{kind: kindIndex, sum: checksum(index), length: int64(len(index)), offset: end, attested: end}
	b := append(r.appendTo(nil, c.mark), index...)
	b = append(b, zeros[:r.end()-end-int64(len(b))]...)
	if err := writeAt(c.file, b, end); err != nil {
		return seal{}, fmt.Errorf("write index: %w", err)
	}
	if err := c.file.Truncate(r.end()); err != nil {
		return seal{}, fmt.Errorf("cut at %d: %w", r.end(), err)
	}
	if err := c.file.Sync(); err != nil {
		return seal{}, fmt.Errorf("sync: %w", err)
	}
	sealed = seal{index: end, end: r.end()}
	if err := writeSeal(c.file, h, sealed); err != nil {
		return seal{}, fmt.Errorf("seal: %w", err)
	}
	return sealed, nil
}

// rewrite writes the bytes of some stretches over themselves.
func (c *scan) rewrite(suspects []region) error {
	for _, r := range suspects {
		for from := r.from; from < r.to; {
			b, err := c.read(from, int(min(windowBytes, r.to-from)))
			if err != nil {
				return fmt.Errorf("read again: %w", err)
			}
			if err := writeAt(c.file, b, from); err != nil {
				return fmt.Errorf("write again at %d: %w", from, err)
			}
			from += int64(len(b))
		}
	}
	return nil
}
