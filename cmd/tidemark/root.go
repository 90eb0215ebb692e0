package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

// global are the options that every command has.
type global struct {
	logLevel  string
	logFormat string
}

func newRoot() *cobra.Command {
	g := &global{}
	root := &cobra.Command{
		Use:           "tidemark",
		Short:         "Thin virtual disks: QCOW2 over NBD and as files, extended before they are full",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs, // or cobra refuses them without saying what to do
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q; see tidemark --help", args[0])
			}
			return c.Help()
		},
	}
	root.PersistentFlags().StringVar(&g.logLevel, "log-level", "info", "debug, info, warn or error")
	root.PersistentFlags().StringVar(&g.logFormat, "log-format", "text", "text or json")
	completeWords(root, "log-level", "debug", "info", "warn", "error")
	completeWords(root, "log-format", "text", "json")
	root.AddCommand(
		newSPM(g), newDomain(), newPoolGroup(), newImageGroup(), newVolume(), newTask(), newRun(g), newDemo(g),
		newCreate(),
		newInfo(),
		newCheck(),
		newMap(),
		newNBD(g),
		newMount(g),
		newWorker(g),
		newVersion(),
	)
	completeRest(root)
	return root
}

// logger writes one line per change of state to w, in UTC.
func (g *global) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(g.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %s: expected debug, info, warn or error", g.logLevel)
	}
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey && len(groups) == 0 {
			a.Value = slog.TimeValue(a.Value.Time().UTC())
		}
		return a
	}}
	switch g.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("--log-format %s: expected text or json", g.logFormat)
}
