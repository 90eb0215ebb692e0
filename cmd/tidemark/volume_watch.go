package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/size"
	"tidemark/spm"
)

// watchPoll is how long one question for events waits.
const watchPoll = 30 * time.Second

// newVolumeWatch shows what happens to the pool.
func newVolumeWatch(dial dialer) *cobra.Command {
	c := &cobra.Command{
		Use: "watch", Short: "Show when volumes begin and stop to wait for space, and when the pool is tight", Args: noArguments,
		Long: `Show the last events of the pool since its manager started, and then each one when
it happens, until Ctrl-C: a volume waits for space, or does not any more; the pool
is tight, so that idle volumes give their headroom back, or is not any more. With
--output=json each is an object in a line of its own.`,
	}
	once := c.Flags().Bool("once", false, "end after those that have happened already")
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		r := spm.PoolWatchRequest{}
		for {
			reply, err := m.WatchPool(c.Context(), r)
			switch {
			case c.Context().Err() != nil:
				return nil
			case err != nil:
				return err
			}
			for _, e := range reply.Events {
				if err := writeEvent(c.OutOrStdout(), *out, e); err != nil {
					return err
				}
			}
			if *once {
				return nil
			}
			r.After, r.WaitMS = reply.Last, watchPoll.Milliseconds()
		}
	}
	return c
}

func writeEvent(w io.Writer, out outputFormat, e spm.Event) error {
	if out == "json" {
		return json.NewEncoder(w).Encode(e)
	}
	_, err := fmt.Fprintf(w, "%s  %s\n", e.Time.Local().Format(time.DateTime), describeEvent(e))
	return err
}

func describeEvent(e spm.Event) string {
	switch {
	case e.Kind == spm.EventWaits:
		return fmt.Sprintf("%s waits for %s", e.Name, size.Format(e.Bytes))
	case e.Kind == spm.EventWaitsNoMore && e.Granted:
		return fmt.Sprintf("%s has its space, after %s", e.Name, shortDuration(e.Time.Sub(e.Since)))
	case e.Kind == spm.EventWaitsNoMore:
		return fmt.Sprintf("%s waits no more, after %s, and got nothing", e.Name, shortDuration(e.Time.Sub(e.Since)))
	case e.Kind == spm.EventTight:
		return fmt.Sprintf("the pool is tight, %s are free", size.Format(e.Bytes))
	case e.Kind == spm.EventTightNoMore:
		return fmt.Sprintf("the pool is not tight any more, %s are free", size.Format(e.Bytes))
	}
	return e.Kind // a newer manager's
}
