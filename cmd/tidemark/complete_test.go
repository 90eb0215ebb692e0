package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// What the shell is told if nothing is offered: to look for files, for directories, or
// for nothing.
const (
	offersFiles   = ":0\n"
	offersNothing = ":4\n"
)

// Of every command the operands, and of every option the values, are completed: with what
// the manager has, with words, with files, or, where that is listed here, with nothing.
func TestEverythingIsCompleted(t *testing.T) {
	_, leaf := aPool(t)
	task := told[begun](t, "volume reduce "+leaf.UUID)
	operands := map[string]string{
		"check": offersFiles, "create": offersFiles, "info": offersFiles, "map": offersFiles,
		"mount": leaf.UUID + "\n", "nbd": leaf.UUID + "\n",
		"domain connect": offersFiles, "domain disconnect": offersFiles,
		"domain create": offersNothing, "pool create": offersNothing, "volume create": offersNothing, "run": offersNothing, // a new name
		"spm": offersNothing, "volume copy": leaf.Image + "\n", "volume move": leaf.Image + "\n",
	}
	kinds := map[string]string{"DOMAIN": "first\t", "[POOL]": "office\t", "POOL": "office\t", "IMAGE": leaf.Image + "\n", "NAME": leaf.UUID + "\n", "TASK": task.Task + "\n"}
	options := map[string][]string{
		"output": {"human\n"}, "log-level": {"debug\n"}, "log-format": {"json\n"}, "format": {"qcow2\n", "COW\n"}, "backing-format": {"raw\n"},
		"cache": {"writeback\n"}, "source-cache": {"writeback\n"}, "aio": {"threads\n"}, "discard": {"unmap\n"}, "detect-zeroes": {"off\n"},
		"files": {"auto\n"}, "repair": {"leaks\n"}, "backing": {"none\n", offersFiles},
		"domain": {"first\t", "\tfirst\n"}, "to": {"first\t"}, "new-master": {"first\t"}, "master": {"first\t"}, "pool": {"office\t"},
		"into": {leaf.UUID + "\n"}, "volume": {leaf.UUID + "\n"}, "template": {leaf.Image + "\n"},
	}
	for name := range strings.FieldsSeq(`bind capacity description export export-name handshake-limit id max-connections max-length name
		object options patience port reserve seed shared size socket-group socket-mode start-offset tls-authz tls-hostname version vg`) {
		options[name] = []string{offersNothing}
	}
	for _, name := range fileFlags {
		if options[name] == nil {
			options[name] = []string{offersFiles}
		}
	}
	asked := func(path string, more ...string) string {
		r := cli(t, slices.Concat([]string{"__complete"}, strings.Fields(path), more)...)
		require.Zero(t, r.code, r)
		return r.stdout
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.TrimPrefix(strings.TrimPrefix(c.CommandPath(), "tidemark"), " ")
		use := strings.Fields(c.Use)
		want := operands[path]
		switch {
		case want != "" || c.HasSubCommands():
		case len(use) == 1:
			want = offersNothing
		default:
			want = kinds[use[1]]
			require.NotEmpty(t, want, "%s: what are its operands completed with?", path)
		}
		require.Contains(t, asked(path, ""), want, path)
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || f.NoOptDefVal != "" {
				return
			}
			offered := asked(path, "--"+f.Name, "")
			require.True(t, slices.ContainsFunc(options[f.Name], func(want string) bool { return strings.Contains(offered, want) }),
				"%s --%s: offered %q, expected one of %q", path, f.Name, offered, options[f.Name])
		})
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				walk(sub)
			}
		}
	}
	walk(newRoot())
}
