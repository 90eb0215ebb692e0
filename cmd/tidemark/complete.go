package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
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

func completeVolumes(dial storageDialer) completer {
	return completeOne(dial, func(s *storage, ctx context.Context) ([]volumeView, error) { return s.volumes(ctx, "") })
}

func completeImages(dial storageDialer) completer {
	return completeOne(dial, func(s *storage, ctx context.Context) ([]imageView, error) { return s.images(ctx, "") })
}

// completeDomainFlag completes the value of an option that names a domain.
func completeDomainFlag(c *cobra.Command, name string, dial storageDialer) {
	c.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { //nolint:errcheck // the option is there
		return candidates(dial, (*storage).domains), cobra.ShellCompDirectiveNoFileComp
	})
}
