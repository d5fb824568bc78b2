package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

func (a *app) queueExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export ID [FILE]",
		Short: "Write the content of a message that is queued or held to a file",
		Long: `Write the content of a message, octet for octet as it was received, to FILE, which
only its owner may read and which must not exist yet, or else to standard output. It
is compared with its digest first. The message stays where it is. Its envelope is what
"queue show" shows; it is not always what the content says.

Who exports what stands in the daemon's log.`,
		Example: `  holdfast queue export 01JZ0000000000000000000000 held.eml
  holdfast queue export 01JZ0000000000000000000000 | sendmail -f sender@example.com user@example.test`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usage(cmd, "ID is missing")
			case len(args) > 2:
				return usage(cmd, "unexpected argument %q", args[2])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && isTerminal(a.stdout) {
				return usage(cmd, "what strangers wrote does not go to a terminal: name a FILE, or redirect the output")
			}
			return a.onMessage(func(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) error {
				content, err := readMessage(ctx, c, id)
				if err != nil {
					return err
				}
				if len(args) == 1 {
					_, err := a.out.Write(content)
					return err
				}
				if err := writeNew(args[1], content, 0o600); err != nil {
					return err
				}
				return a.done(fmt.Sprintf("Wrote %s to %s.", size(int64(len(content))), args[1]), map[string]any{"queue_id": id.String(), "file": args[1], "size": len(content)})
			})(cmd, args)
		},
	}
}

// readMessage reads a message piece by piece, and compares it with its digest.
func readMessage(ctx context.Context, c adminpb.AdminServiceClient, id mail.QueueID) ([]byte, error) {
	var content []byte
	for {
		piece, err := c.ReadMessage(ctx, &adminpb.ReadMessageRequest{QueueId: id.String(), Offset: int64(len(content))})
		if err != nil {
			return nil, err
		}
		content = append(content, piece.GetOctets()...)
		if len(piece.GetOctets()) > 0 && int64(len(content)) < piece.GetSize() {
			continue
		}
		if sum := sha256.Sum256(content); !bytes.Equal(sum[:], piece.GetSha256()) {
			return nil, &callError{exit: exitTryAgain, text: fmt.Sprintf("what the daemon read of %s is damaged: \"holdfast scrub\" has it fetched again", id)}
		}
		return content, nil
	}
}
