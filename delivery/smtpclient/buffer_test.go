package smtpclient

import (
	"bufio"
	"io"
)

func newTestWriter(w io.Writer) *bufio.Writer { return bufio.NewWriterSize(w, writeBufferBytes) }
func newTestReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, replyLineBytesMax) }
