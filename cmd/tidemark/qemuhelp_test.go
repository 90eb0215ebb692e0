package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// Every option in QEMU's help is known here: implemented, accepted, or refused
// by its name.
func TestEveryOptionOfQEMUIsKnown(t *testing.T) {
	commands := map[string]*cobra.Command{}
	for _, c := range newRoot().Commands() {
		c.InitDefaultHelpFlag()
		commands[c.Name()] = c
	}
	t.Run("nbd", func(t *testing.T) {
		options := optionsIn(testenv.Run(t, "qemu-nbd", "--help"))
		require.Greater(t, len(options), 40, "this is the help text")
		known(t, commands["nbd"], options)
	})
	help := testenv.Try(t, testenv.Tool(t, "qemu-img"), "--help").Stdout
	for _, name := range []string{"create", "info", "check", "map"} {
		t.Run(name, func(t *testing.T) {
			_, syntax, ok := strings.Cut(help, "\n  "+name+" [")
			require.True(t, ok, help)
			syntax, _, _ = strings.Cut(syntax, "\n")
			options := optionsIn("[" + syntax)
			require.Greater(t, len(options), 4, syntax)
			known(t, commands[name], options)
		})
	}
}

// An option in a help text begins a line, or follows a bracket or a comma.
var optionPattern = regexp.MustCompile(`(?m)(?:^\s*|[\[|(,] ?)(--?[a-zA-Z][a-z-]*)`)

func optionsIn(help string) (names []string) {
	for _, m := range optionPattern.FindAllStringSubmatch(help, -1) {
		names = append(names, m[1])
	}
	return names
}

func known(t *testing.T, c *cobra.Command, options []string) {
	t.Helper()
	for _, o := range options {
		long, isLong := strings.CutPrefix(o, "--")
		if isLong {
			require.NotNil(t, c.Flags().Lookup(long), "%s %s", c.Name(), o)
		} else {
			require.NotNil(t, c.Flags().ShorthandLookup(o[1:]), "%s %s", c.Name(), o)
		}
	}
}

// Options that QEMU does not have, and that people and scripts know of Tidemark:
// there, or refused by their name.
func TestEveryOptionOfOursIsKnown(t *testing.T) {
	for command, options := range map[string]string{
		"nbd":    "--spm --export --control --socket-mode --socket-group --max-connections --patience --insecure",
		"spm":    "--vg --dir --capacity --socket --state --devices --patience",
		"run":    "--dir --capacity --size",
		"info":   "--output",
		"check":  "--output",
		"map":    "--output",
		"volume": "--spm",
	} {
		c, _, err := newRoot().Find([]string{command})
		require.NoError(t, err)
		c.LocalFlags() // adds to Flags those of all commands, and of all verbs of a group
		known(t, c, strings.Fields(options+" --log-level --log-format"))
	}
}

func TestOptionsInHelp(t *testing.T) {
	require.Equal(t, []string{"-h", "--help", "-k", "--socket", "--cache", "-T", "--trace"},
		optionsIn("  -h, --help   display\n  -k, --socket=PATH  (default '/var/lock/qemu-nbd-X')\n      --cache=MODE  set\n  -T, --trace [[enable=]<p>]\n"))
	require.Equal(t, []string{"--object", "-q", "-f", "-r"}, optionsIn("[--object objectdef] [-q] [-f fmt] [-r [leaks | all]]"))
}

func refusedOptions(c *cobra.Command) (all []*pflag.Flag) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if _, ok := f.Value.(*refusedOption); ok {
			all = append(all, f)
		}
	})
	return all
}

// What is refused says so by its name, and what to do instead.
func TestRefusedOptions(t *testing.T) {
	for _, c := range newRoot().Commands() {
		switch c.Name() {
		case "nbd", "create", "info", "check", "map", "spm":
		default:
			continue
		}
		for _, f := range refusedOptions(c) {
			args := []string{c.Name(), "--" + f.Name}
			if f.NoOptDefVal == "" {
				args = append(args, "x")
			}
			r := cli(t, append(args, "nothing.qcow2")...)
			require.Equal(t, exitFailure, r.code, r)
			require.Contains(t, r.stderr, "--"+f.Name+": ", r)
			require.Contains(t, r.stderr, "not", r)
			require.Empty(t, r.stdout, r)
		}
	}
}
