package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"tidemark/nbd"
)

// listTimeout bounds the questions of -L.
const listTimeout = 10 * time.Second

// listExports asks a server what it has.
func listExports(ctx context.Context, w io.Writer, p nbdPlan) error {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	network, address := p.network, p.address
	secure, err := p.tls.client(p.host)
	if err != nil {
		return err
	}
	all, err := nbd.List(ctx, network, address, secure)
	if err != nil {
		return fmt.Errorf("list the exports of %s: %w", address, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "exports available: %d\n", len(all))
	for _, x := range all {
		info, err := nbd.Info(ctx, network, address, x.Name, secure)
		if err != nil {
			return fmt.Errorf("ask %s about export %q: %w", address, x.Name, err)
		}
		if info.Description == "" {
			info.Description = x.Description
		}
		printExport(&b, info)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// printExport prints one export as qemu-nbd -L does.
func printExport(w io.Writer, x nbd.ExportInfo) {
	fmt.Fprintf(w, " export: '%s'\n", printable(x.Name))
	if x.Description != "" {
		fmt.Fprintf(w, "  description: %s\n", printable(x.Description))
	}
	fmt.Fprintf(w, "  size:  %d\n", x.Size)
	fmt.Fprintf(w, "  flags: 0x%x ( %s )\n", x.Flags, strings.Join(x.FlagNames(), " "))
	fmt.Fprintf(w, "  min block: %d\n  opt block: %d\n  max block: %d\n", x.MinBlock, x.PreferredBlock, x.MaxPayload)
	if len(x.Contexts) > 0 {
		fmt.Fprintf(w, "  available meta contexts: %d\n", len(x.Contexts))
		for _, c := range x.Contexts {
			fmt.Fprintf(w, "   %s\n", printable(c))
		}
	}
}
