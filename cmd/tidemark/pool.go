package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/spm"
)

// newPoolGroup is the group of verbs about storage pools.
func newPoolGroup() *cobra.Command {
	c := group("pool", "Create, connect and manage storage pools", `Create, connect and manage storage pools. A pool is a set of domains, one of which is
the master: it keeps the pool's metadata and tasks. A host is connected to one pool
at most, and manages it from "start" to "stop" (the SPM role of VDSM).

POOL is a pool's name while it is connected, its UUID, or how that begins. It may be
left out where one is connected.`, "create, connect, disconnect, start, stop, reconstruct, destroy, list or info")
	dial := storageFlag(c)
	c.AddCommand(newPoolCreate(dial), newPoolConnect(dial),
		newPoolDo(dial, "disconnect", "disconnectStoragePool", "Make the host none of the pool's", "disconnected"),
		newPoolStart(dial),
		newPoolDo(dial, "stop", "spmStop", "Give up managing the pool; volumes that are served go on", "stopped"),
		newPoolDo(dial, "destroy", "destroyStoragePool", "Detach all domains of the pool; their volumes stay", "destroyed"),
		newPoolReconstruct(dial), newPoolList(dial), newPoolInfo(dial))
	return c
}

// A poolView is what the verbs tell of a pool. Of one that is not connected only
// the master's metadata is known.
type poolView struct {
	UUID          string            `json:"uuid"`
	Name          string            `json:"name,omitempty"`
	Connected     bool              `json:"connected"`
	Master        string            `json:"master_uuid"`
	MasterVersion int64             `json:"master_ver"`
	SPM           string            `json:"spm_status,omitempty"`
	Epoch         int64             `json:"lver,omitempty"`
	Domains       map[string]string `json:"domains"` // states by UUID
	Stats         *statsView        `json:"stats,omitempty"`
}

func (p poolView) id() string     { return p.UUID }
func (p poolView) keys() []string { return []string{p.Name} }

// pools are the pools of the domains that the host has found.
func (s *storage) pools(ctx context.Context) ([]poolView, error) {
	domains, err := s.domains(ctx)
	if err != nil {
		return nil, err
	}
	connected, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	found := poolsOf(domains)
	for _, id := range connected {
		p, err := s.connectedPool(ctx, id)
		if err != nil {
			return nil, err
		}
		found[id] = p
	}
	return slices.SortedFunc(maps.Values(found), func(a, b poolView) int { return cmp.Compare(a.UUID, b.UUID) }), nil
}

// connected are the UUIDs of the pools that the host is connected to.
func (s *storage) connected(ctx context.Context) ([]string, error) {
	var r struct {
		Pools []string `json:"poollist"`
	}
	err := s.ask(ctx, "getConnectedStoragePoolsList", nil, &r)
	return r.Pools, err
}

// poolsOf are the pools that domains say that they are of. The master is the one
// with the highest version.
func poolsOf(domains []domainView) map[string]poolView {
	pools := map[string]poolView{}
	for _, d := range domains {
		if d.pool() == "" {
			continue
		}
		p, ok := pools[d.pool()]
		if !ok {
			p = poolView{UUID: d.pool(), Domains: map[string]string{}}
		}
		p.Domains[d.UUID] = d.State
		if d.Role == "Master" && d.Master >= p.MasterVersion {
			p.Master, p.MasterVersion = d.UUID, d.Master
		}
		pools[p.UUID] = p
	}
	return pools
}

// connectedPool asks about a pool that is connected.
func (s *storage) connectedPool(ctx context.Context, id string) (poolView, error) {
	var r struct {
		Info struct {
			Name    string `json:"name"`
			Master  string `json:"master_uuid"`
			Version int64  `json:"master_ver"`
			Lver    int64  `json:"lver"`
		} `json:"info"`
		Domains map[string]struct {
			Status string `json:"status"`
		} `json:"dominfo"`
	}
	var role struct {
		Status struct {
			SPM string `json:"spmStatus"`
		} `json:"spm_st"`
	}
	var stats struct {
		Stats statsView `json:"stats"`
	}
	args := named{"spUUID": id}
	err := errors.Join(s.ask(ctx, "getStoragePoolInfo", args, &r), s.ask(ctx, "getSpmStatus", args, &role), s.ask(ctx, "getStoragePoolStats", args, &stats))
	p := poolView{UUID: id, Name: r.Info.Name, Connected: true, Master: r.Info.Master, MasterVersion: r.Info.Version,
		SPM: role.Status.SPM, Epoch: r.Info.Lver, Domains: map[string]string{}, Stats: &stats.Stats}
	for d, st := range r.Domains {
		p.Domains[d] = st.Status
	}
	return p, err
}

// pool is the one of that name, or the one that is connected.
func (s *storage) pool(ctx context.Context, name string) (poolView, error) {
	all, err := s.pools(ctx)
	if err != nil {
		return poolView{}, err
	}
	if name != "" {
		return match("pool", name, all)
	}
	for _, p := range all {
		if p.Connected {
			return p, nil
		}
	}
	if len(all) == 0 {
		return poolView{}, errors.New("there is no pool; make one with: tidemark pool create NAME DOMAIN")
	}
	return poolView{}, fmt.Errorf("no pool is connected; there are %s; connect one with: tidemark pool connect POOL", list(all))
}

func newPoolCreate(dial storageDialer) *cobra.Command {
	c := &cobra.Command{
		Use: "create NAME DOMAIN...", Short: "Make a pool of domains of no pool, and bring it into use", Args: cobra.MinimumNArgs(2),
		Long: `Make a pool of domains of no pool. The first is the master. Unless --only is given, the
host is connected to the pool and begins to manage it, and its domains come into use.`,
		Example: "  tidemark pool create office first\n  tidemark pool create office first second",
	}
	only := c.Flags().Bool("only", false, "only make it")
	asked := c.Flags().String("id", "", "its UUID; without it a new one")
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return candidates(dial, (*storage).domains), cobra.ShellCompDirectiveNoFileComp
	}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		if args[0] == "" {
			return errors.New("expected a name for the pool, found an empty one")
		}
		id, err := newID(*asked)
		if err != nil {
			return err
		}
		all, err := s.domains(c.Context())
		if err != nil {
			return err
		}
		p := poolView{UUID: id, Name: args[0], MasterVersion: 1}
		var domains []string
		for _, name := range args[1:] {
			d, err := match("domain", name, all)
			if err != nil {
				return err
			}
			domains = append(domains, d.UUID)
		}
		p.Master = domains[0]
		if err := s.ask(c.Context(), "createStoragePool", named{"spUUID": id, "poolName": args[0], "masterDom": p.Master, "domList": domains, "masterVersion": 1}, nil); err != nil {
			return err
		}
		next := fmt.Sprintf("next: %s pool connect %s", self(), id)
		if !*only {
			err := s.start(c, p)
			if err == nil {
				err = s.activateAll(c.Context(), id)
			}
			if err != nil {
				return fmt.Errorf("pool %s is made, and not in use: %w", id, err)
			}
			next = "this host manages it; next: " + self() + " volume create --size 10G NAME"
		}
		return out.print(c.OutOrStdout(), named{"uuid": id, "name": args[0], "master_uuid": p.Master}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "created %s: %s; %s\n", args[0], id, next)
			return err
		})
	})
	return c
}

// start connects the host to a pool, and begins to manage it.
func (s *storage) start(c *cobra.Command, p poolView) error {
	if err := s.connectPool(c.Context(), p); err != nil {
		return err
	}
	id, err := s.beginTask(c.Context(), "spmStart", named{"spUUID": p.UUID})
	if err != nil {
		return err
	}
	_, err = s.endTask(c.Context(), id, terminal(c.ErrOrStderr()))
	return err
}

// activateAll brings the domains of a pool into use that are not.
func (s *storage) activateAll(ctx context.Context, id string) error {
	p, err := s.connectedPool(ctx, id)
	if err != nil {
		return err
	}
	for d, state := range p.Domains {
		if state != string(spm.DomainAttached) {
			continue
		}
		if err := s.ask(ctx, "activateStorageDomain", named{"sdUUID": d, "spUUID": id}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *storage) connectPool(ctx context.Context, p poolView) error {
	return s.ask(ctx, "connectStoragePool", named{"spUUID": p.UUID, "hostID": 1, "scsiKey": "", "msdUUID": p.Master, "masterVersion": p.MasterVersion}, nil)
}

// poolOperand takes one pool, or none.
func poolOperand(c *cobra.Command, dial storageDialer) {
	c.Use += " [POOL]"
	c.Args, c.ValidArgsFunction = cobra.MaximumNArgs(1), completePools(dial)
}

// onePool is what a verb does with a pool: that of the operand, or the connected one.
func onePool(dial storageDialer, do func(c *cobra.Command, s *storage, p poolView) error) func(*cobra.Command, []string) error {
	return onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		p, err := s.pool(c.Context(), strings.Join(args, ""))
		if err != nil {
			return err
		}
		return do(c, s, p)
	})
}

func printPool(c *cobra.Command, out *outputFormat, p poolView, done string) error {
	return out.print(c.OutOrStdout(), named{"uuid": p.UUID, "name": p.Name}, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s: %s\n", cmp.Or(p.Name, p.UUID), done)
		return err
	})
}

func newPoolConnect(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "connect POOL", Short: "Make the host one of a pool's", Args: operands("POOL"), ValidArgsFunction: completePools(dial)}
	out := outputFlag(c)
	c.RunE = onePool(dial, func(c *cobra.Command, s *storage, p poolView) error {
		if err := s.connectPool(c.Context(), p); err != nil {
			return err
		}
		return printPool(c, out, p, "connected; next: tidemark pool start")
	})
	return c
}

func newPoolStart(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "start", Short: "Connect a pool, and make this host the one that manages it"}
	poolOperand(c, dial)
	out := outputFlag(c)
	c.RunE = onePool(dial, func(c *cobra.Command, s *storage, p poolView) error {
		if err := s.start(c, p); err != nil {
			return err
		}
		return printPool(c, out, p, "managed by this host")
	})
	return c
}

func newPoolDo(dial storageDialer, use, verb, short, done string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	poolOperand(c, dial)
	out := outputFlag(c)
	c.RunE = onePool(dial, func(c *cobra.Command, s *storage, p poolView) error {
		args := named{"spUUID": p.UUID}
		if verb != "spmStop" {
			args["hostID"], args["scsiKey"] = 1, ""
		}
		if err := s.ask(c.Context(), verb, args, nil); err != nil {
			return err
		}
		return printPool(c, out, p, done)
	})
	return c
}

func newPoolList(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the pools of the domains that the host has found", Args: noArguments}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, _ []string) error {
		all, err := s.pools(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), notNil(all), func(w io.Writer) error {
			if len(all) == 0 {
				_, err := fmt.Fprintln(w, "no pools; make one with: tidemark pool create NAME DOMAIN")
				return err
			}
			t := newTable(w, "NAME", "POOL", "CONNECTED", "SPM", "MASTER", "VERSION", "DOMAINS")
			for _, p := range all {
				t.row(cmp.Or(p.Name, "-"), p.UUID, yesNo(p.Connected), cmp.Or(p.SPM, "-"), p.Master, p.MasterVersion, len(p.Domains))
			}
			return t.end()
		})
	})
	return c
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newPoolInfo(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "info", Short: "Show one pool, and how it is used"}
	poolOperand(c, dial)
	out := outputFlag(c)
	c.RunE = onePool(dial, func(c *cobra.Command, s *storage, p poolView) error {
		return out.print(c.OutOrStdout(), p, func(w io.Writer) error {
			t := newTable(w)
			t.row("name", cmp.Or(p.Name, "-"))
			t.row("pool", p.UUID)
			t.row("connected", yesNo(p.Connected))
			t.row("SPM", cmp.Or(p.SPM, "-"))
			t.row("epoch", p.Epoch)
			t.row("master", fmt.Sprintf("%s (version %d)", p.Master, p.MasterVersion))
			for _, d := range slices.Sorted(maps.Keys(p.Domains)) {
				t.row("domain", d+" "+p.Domains[d])
			}
			if p.Stats != nil {
				p.Stats.rows(t)
			}
			return t.end()
		})
	})
	return c
}
