package main

import (
	"os"
	"path/filepath"
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

// Every option in qemu-nbd's help is used once, as QEMU's users write it: with it the
// image is served, something is printed, or the error names the option.
func TestEveryOptionOfQEMUNBDIsTried(t *testing.T) {
	const serves, prints, refused = "serves", "prints", "refused"
	dir := t.TempDir()
	tries := map[string]struct{ what, args string }{
		"--help": {prints, "--help"}, "--version": {prints, "--version"}, "--list": {prints, "--list"},
		"--port": {serves, "--port=0"}, "--bind": {serves, "--bind=127.0.0.1 -p 0"}, "--socket": {serves, "--socket=SOCKET"},
		"--shared": {serves, "--shared=3"}, "--persistent": {serves, "--persistent"}, "--verbose": {serves, "--verbose"},
		"--export-name": {serves, "--export-name=n"}, "--description": {serves, "--description=d"},
		"--offset": {refused, "--offset=512"}, "--allocation-depth": {serves, "--allocation-depth"}, "--bitmap": {refused, "--bitmap=b"},
		"--object":    {refused, "--object secret,id=s,data=x"},
		"--tls-creds": {refused, "--tls-creds=id"}, "--tls-authz": {refused, "--tls-authz=id"},
		"--trace": {refused, "--trace=enable=x"}, "--fork": {serves, "--fork"}, "--pid-file": {serves, "--pid-file=" + filepath.Join(dir, "pid")},
		"--selinux-label": {refused, "--selinux-label=x"}, "--connect": {refused, "--connect=/dev/nbd0"}, "--disconnect": {refused, "--disconnect=/dev/nbd0"},
		"--format": {serves, "--format=qcow2"}, "--read-only": {serves, "--read-only"}, "--snapshot": {refused, "--snapshot"},
		"--load-snapshot": {refused, "--load-snapshot=x"}, "--nocache": {refused, "--nocache"}, "--cache": {serves, "--cache=writeback"},
		"--aio": {serves, "--aio=native"}, "--discard": {serves, "--discard=unmap"}, "--detect-zeroes": {serves, "--detect-zeroes=off"},
		"--image-opts": {refused, "--image-opts"},
	}
	for _, option := range optionsIn(testenv.Run(t, "qemu-nbd", "--help")) {
		if !strings.HasPrefix(option, "--") { // the short ones are looked up above
			continue
		}
		try, ok := tries[option]
		require.True(t, ok, "%s is not tried here", option)
		t.Run(option, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			args := append([]string{"nbd"}, strings.Fields(strings.ReplaceAll(try.args, "SOCKET", socket))...)
			tcp := strings.Contains(try.args, "-p 0") || strings.Contains(try.args, "--port")
			if !tcp && option != "--socket" {
				args = append(args, "-k", socket)
			}
			switch try.what {
			case refused:
				r := cli(t, append(args, newImage(t, "4M"))...)
				require.Equal(t, exitFailure, r.code, r)
				require.Contains(t, r.stderr, option, r)
			case prints:
				if option == "--list" {
					p := testenv.Start(t, tidemark(t, "nbd", "-t", "-k", socket, newImage(t, "4M")))
					awaitOutput(t, p, "listening")
				}
				r := cli(t, args...)
				require.Zero(t, r.code, r)
				require.NotEmpty(t, r.stdout)
			case serves:
				p := testenv.Start(t, tidemark(t, append(args, newImage(t, "4M"))...))
				if option == "--fork" {
					require.NoError(t, p.Wait(t, serveLimit), p.Output())
				} else {
					awaitOutput(t, p, "listening")
				}
				if !tcp { // the address is in the log only
					c := dialNBD(t, socket, "")
					require.EqualValues(t, 4<<20, c.Info().Size)
					require.NoError(t, c.Close())
				}
				if option != "--persistent" && !tcp {
					require.NoError(t, p.Wait(t, serveLimit), p.Output())
					testenv.Eventually(t, serveLimit, "the socket has gone", func() bool {
						_, err := os.Stat(socket)
						return os.IsNotExist(err)
					})
					return
				}
				stopped(t, p)
			}
		})
	}
}
