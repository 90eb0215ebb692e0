package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// completeLimit is how long the shell waits for what could follow.
const completeLimit = time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeOne completes one operand with the keys and UUIDs of what get returns.
func completeOne[T stored](dial storageDialer, get func(*storage, context.Context) ([]T, error)) completer {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return candidates(dial, get), cobra.ShellCompDirectiveNoFileComp
	}
}

// candidates are the names of all objects, each with its UUID as the description
// where it has a name; none if nobody answers.
func candidates[T stored](dial storageDialer, get func(*storage, context.Context) ([]T, error)) []string {
	s, err := dial()
	if err != nil {
		return nil
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), completeLimit)
	defer cancel()
	all, err := get(s, ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range all {
		if name := o.keys()[0]; name != "" {
			out = append(out, name+"\t"+o.id())
			continue
		}
		out = append(out, o.id())
	}
	return out
}

func completeTasks(dial storageDialer) completer { return completeOne(dial, (*storage).tasks) }

func completeDomains(dial storageDialer) completer { return completeOne(dial, (*storage).domains) }

func completePools(dial storageDialer) completer { return completeOne(dial, (*storage).pools) }

func completeVolumes(dial storageDialer) completer { return completeOne(dial, (*storage).allVolumes) }

func completeImages(dial storageDialer) completer { return completeOne(dial, (*storage).allImages) }

func (s *storage) allVolumes(ctx context.Context) ([]volumeView, error) { return s.volumes(ctx, "") }

func (s *storage) allImages(ctx context.Context) ([]imageView, error) { return s.images(ctx, "") }

// completeFlag completes the value of an option with the names of what get returns.
func completeFlag[T stored](c *cobra.Command, name string, dial storageDialer, get func(*storage, context.Context) ([]T, error)) {
	c.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { //nolint:errcheck // the option is there
		return candidates(dial, get), cobra.ShellCompDirectiveNoFileComp
	})
}

// completeDomainFlag completes the value of an option that names a domain.
func completeDomainFlag(c *cobra.Command, name string, dial storageDialer) {
	completeFlag(c, name, dial, (*storage).domains)
}

// completeWords completes the value of an option that has a few.
func completeWords(c *cobra.Command, name string, words ...string) {
	c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) //nolint:errcheck // the option is there
}

// completeServed completes an operand that is a volume, or a file, with what a manager
// has, and with files where that is nothing.
func completeServed(c *cobra.Command, path *string) {
	volumes := completeVolumes(func() (*storage, error) { return dialStorage(*path) })
	c.ValidArgsFunction = func(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		names, _ := volumes(c, args, begun)
		return names, cobra.ShellCompDirectiveDefault
	}
}

// completeDomainID completes the value of --domain where that is a UUID, with the names as
// descriptions.
func completeDomainID(c *cobra.Command, path *string) {
	c.RegisterFlagCompletionFunc("domain", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { //nolint:errcheck // the option is there
		all := candidates(func() (*storage, error) { return dialStorage(*path) }, (*storage).domains)
		for i, c := range all {
			if name, id, named := strings.Cut(c, "\t"); named {
				all[i] = id + "\t" + name
			}
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	})
}

// fileFlags are the options whose values are files, directories or sockets, which the
// shell knows.
var fileFlags = []string{"backing", "control", "devices", "dir", "pid-file", "qmp", "root", "socket", "spm", "state", "tls-creds"}

// completeRest completes what nobody has completed: the words of options that have a few,
// and nothing where a file would make no sense.
func completeRest(c *cobra.Command) {
	flag := func(f *pflag.Flag) {
		words, few := f.Value.(interface{ words() []string })
		switch {
		case few:
			completeWords(c, f.Name, words.words()...)
		case !slices.Contains(fileFlags, f.Name):
			completeWords(c, f.Name)
		}
	}
	c.LocalFlags().VisitAll(flag)
	if !c.HasSubCommands() && c.ValidArgsFunction == nil && !strings.Contains(c.Use, " ") {
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range c.Commands() {
		completeRest(sub)
	}
}
