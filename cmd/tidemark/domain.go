package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tidemark/internal/size"
	"tidemark/spm"
)

// newDomain is the group of verbs about storage domains.
func newDomain() *cobra.Command {
	c := group("domain", "Connect, create, attach and list storage domains", `Connect, create, attach and list storage domains. A domain is a directory, or a volume
group of LVM, that holds volumes. It is of a pool or of none; of its pool it is in
use (Active) or not (Attached).

DOMAIN is a domain's name, its UUID or how that begins, its directory, or its volume
group.`, "connect, disconnect, create, attach, activate, deactivate, detach, format, list or info")
	dial := storageFlag(c)
	c.AddCommand(newDomainConnect(dial, "connect", "connectStorageServer", "Make storage known to the host; domains that lie there are found", "connected", "was connected before"),
		newDomainConnect(dial, "disconnect", "disconnectStorageServer", "Make the host forget storage", "disconnected", "was not connected"),
		newDomainCreate(dial), newDomainAttach(dial), newDomainActivate(dial), newDomainDeactivate(dial), newDomainDetach(dial),
		newDomainFormat(dial), newDomainList(dial), newDomainInfo(dial))
	return c
}

// A placeFlags says of which type a place is.
type placeFlags struct{ block bool }

func (f placeFlags) domainType() spm.DomainType {
	if f.block {
		return spm.DomainBlock
	}
	return spm.DomainLocal
}

// address is how the host is told a place: an absolute directory, or devices.
func (f placeFlags) address(place string) string {
	if f.block {
		return place
	}
	return absolute(place)
}

// connect asks one of the verbs of connections about places, and says of which there was
// something to do.
func (s *storage) connect(ctx context.Context, verb string, t spm.DomainType, addresses ...string) (done []bool, err error) {
	var list []named
	for _, a := range addresses {
		list = append(list, named{"id": uuid.NewString(), "connection": a})
	}
	var r struct {
		Status []struct {
			Status  int    `json:"status"`
			Message string `json:"message"`
		} `json:"statuslist"`
	}
	if err := s.ask(ctx, verb, named{"domType": string(t), "spUUID": blank, "conList": list}, &r); err != nil {
		return nil, err
	}
	var errs []error
	done = make([]bool, len(addresses))
	for i, st := range r.Status {
		if i < len(done) {
			done[i] = st.Message == ""
		}
		if st.Status != 0 && i < len(addresses) {
			errs = append(errs, fmt.Errorf("%s (code %d)", about(addresses[i], st.Message), st.Status))
		}
	}
	return done, errors.Join(errs...)
}

// about is a message that says what it is about, once.
func about(what, message string) string {
	if strings.Contains(message, what) {
		return message
	}
	return what + ": " + message
}

func newDomainConnect(dial storageDialer, use, verb, short, done, was string) *cobra.Command {
	c := &cobra.Command{Use: use + " DIR... | --block DEVICE,...", Short: short, Args: cobra.MinimumNArgs(1),
		Example: "  tidemark domain " + use + " /srv/storage\n  tidemark domain " + use + " --block /dev/sdb,/dev/sdc"}
	var f placeFlags
	c.Flags().BoolVar(&f.block, "block", false, "devices of a volume group, separated by commas")
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		for i := range args {
			args[i] = f.address(args[i])
		}
		changed, err := s.connect(c.Context(), verb, f.domainType(), args...)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), args, func(w io.Writer) error {
			var errs []error
			for i, place := range args {
				text := fmt.Sprintf("%s %s", done, place)
				if !changed[i] {
					text = fmt.Sprintf("%s %s", place, was)
				}
				_, err := fmt.Fprintln(w, text)
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
	})
	return c
}

func newDomainCreate(dial storageDialer) *cobra.Command {
	c := &cobra.Command{
		Use: "create NAME DIR | --block NAME GROUP", Short: "Make a domain of no pool", Args: operands("NAME", "PLACE"),
		Long: `Make a domain in an empty directory, which is connected first, or on a volume group,
whose devices are connected already or given with --devices. The domain is of no
pool: "tidemark pool create" makes a pool of it, "tidemark domain attach" one of a
pool.`,
		Example: "  tidemark domain create first /srv/storage --capacity 100G\n  tidemark domain create --block fast vg0 --devices /dev/sdb,/dev/sdc",
	}
	var f placeFlags
	var capacity bytesFlag
	c.Flags().BoolVar(&f.block, "block", false, "on a volume group")
	c.Flags().Var(&capacity, "capacity", "what its volumes may be granted together, of a directory; without it what the file system has")
	devices := c.Flags().String("devices", "", "devices of the volume group, separated by commas, to be connected first")
	asked := c.Flags().String("id", "", "its UUID; without it a new one")
	c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 { // the directory, behind a new name
			return nil, cobra.ShellCompDirectiveFilterDirs
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		if args[0] == "" {
			return errors.New("expected a name for the domain, found an empty one")
		}
		id, err := newID(*asked)
		if err != nil {
			return err
		}
		place, connect := args[1], *devices
		if !f.block {
			place = filepath.Clean(absolute(place))
			connect = place
		}
		if connect != "" {
			if _, err := s.connect(c.Context(), "connectStorageServer", f.domainType(), connect); err != nil {
				return err
			}
		}
		err = s.ask(c.Context(), "createStorageDomain", named{"storageType": string(f.domainType()), "sdUUID": id, "domainName": args[0],
			"typeSpecificArg": place, "domClass": "Data", "capacity": fmt.Sprint(int64(capacity))}, nil)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), domainView{UUID: id, Name: args[0], Type: string(f.domainType()), State: string(spm.DomainUnattached)}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "created %s: %s; next: %s pool create POOL %s\n", args[0], id, self(), shellQuote(args[0]))
			return err
		})
	})
	return c
}

// domainVerb is a command that asks a verb about one domain, and says done. args
// completes the arguments.
func domainVerb(dial storageDialer, c *cobra.Command, verb, done string, args func(c *cobra.Command, s *storage, d domainView) (named, error)) *cobra.Command {
	c.Args, c.ValidArgsFunction = operands("DOMAIN"), completeDomains(dial)
	c.Use += " DOMAIN"
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, operands []string) error {
		d, err := s.domain(c.Context(), operands[0])
		if err != nil {
			return err
		}
		a, err := args(c, s, d)
		if err != nil {
			return err
		}
		a["sdUUID"] = d.UUID
		if err := s.ask(c.Context(), verb, a, nil); err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), named{"uuid": d.UUID, "name": d.Name}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %s\n", cmp.Or(d.Name, d.UUID), done)
			return err
		})
	})
	return c
}

func newDomainAttach(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "attach", Short: "Make a domain of no pool one of a pool, not in use yet",
		Example: "  tidemark domain attach second && tidemark domain activate second"}
	pool := c.Flags().String("pool", "", "the pool (default: the one that is connected)")
	completeFlag(c, "pool", dial, (*storage).pools)
	return domainVerb(dial, c, "attachStorageDomain", "attached", func(c *cobra.Command, s *storage, _ domainView) (named, error) {
		p, err := s.pool(c.Context(), *pool)
		return named{"spUUID": p.UUID}, err
	})
}

// ofItsPool are the arguments that name the domain's pool.
func ofItsPool(_ *cobra.Command, _ *storage, d domainView) (named, error) {
	if d.pool() == "" {
		return nil, fmt.Errorf("domain %s is of no pool: attach it first", cmp.Or(d.Name, d.UUID))
	}
	return named{"spUUID": d.pool()}, nil
}

func newDomainActivate(dial storageDialer) *cobra.Command {
	return domainVerb(dial, &cobra.Command{Use: "activate", Short: "Bring an attached domain into use"}, "activateStorageDomain", "active", ofItsPool)
}

func newDomainDeactivate(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "deactivate", Short: "Take a domain out of use",
		Long:    "Take a domain out of use. If it is the master of its pool, another domain in use gets that role first.",
		Example: "  tidemark domain deactivate first --new-master second"}
	master := c.Flags().String("new-master", "", "the domain that becomes the master, if this one is it")
	completeDomainFlag(c, "new-master", dial)
	return domainVerb(dial, c, "deactivateStorageDomain", "not in use any more", func(c *cobra.Command, s *storage, d domainView) (named, error) {
		a, err := ofItsPool(c, s, d)
		if err != nil {
			return nil, err
		}
		a["msdUUID"], a["masterVersion"] = blank, 0
		if *master != "" {
			m, err := s.domain(c.Context(), *master)
			if err != nil {
				return nil, err
			}
			a["msdUUID"], a["masterVersion"] = m.UUID, d.Master+1
		}
		return a, nil
	})
}

func newDomainDetach(dial storageDialer) *cobra.Command {
	return domainVerb(dial, &cobra.Command{Use: "detach", Short: "Make a domain that is not in use one of no pool"}, "detachStorageDomain", "of no pool",
		func(c *cobra.Command, s *storage, d domainView) (named, error) {
			a, err := ofItsPool(c, s, d)
			if err == nil {
				a["msdUUID"], a["masterVersion"] = blank, 0
			}
			return a, err
		})
}

func newDomainFormat(dial storageDialer) *cobra.Command {
	return domainVerb(dial, &cobra.Command{Use: "format", Short: "Remove a domain of no pool, with everything in it"}, "formatStorageDomain", "removed",
		func(*cobra.Command, *storage, domainView) (named, error) { return named{}, nil })
}

func newDomainList(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the domains", Args: noArguments}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, _ []string) error {
		all, err := s.domains(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), notNil(all), func(w io.Writer) error {
			if len(all) == 0 {
				_, err := fmt.Fprintln(w, "no domains; make one with: tidemark domain create NAME DIR")
				return err
			}
			t := newTable(w, "NAME", "DOMAIN", "TYPE", "STATE", "ROLE", "CAPACITY", "GRANTED", "FREE", "LEVEL", "WHERE")
			for _, d := range all {
				st := &statsView{Level: "-"}
				if d.Stats != nil {
					st = d.Stats
				}
				t.row(cmp.Or(d.Name, "-"), d.UUID, cmp.Or(d.Type, "-"), d.State, d.Role, short(st.Capacity), short(st.Granted), short(st.Free), st.Level, cmp.Or(d.where(), "-"))
			}
			return t.end()
		})
	})
	return c
}

func short(d decimalBytes) string { return size.Format(int64(d)) }

func newDomainInfo(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "info DOMAIN", Short: "Show one domain", Args: operands("DOMAIN"), ValidArgsFunction: completeDomains(dial)}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		d, err := s.domain(c.Context(), args[0])
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), d, func(w io.Writer) error {
			t := newTable(w)
			t.row("name", d.Name)
			t.row("domain", d.UUID)
			t.row("type", d.Type)
			t.row("version", d.Version)
			t.row("state", d.State)
			t.row("role", d.Role)
			t.row("pool", cmp.Or(d.pool(), "none"))
			t.row("where", d.where())
			if d.Stats != nil {
				d.Stats.rows(t)
			}
			return t.end()
		})
	})
	return c
}

// rows writes how much is used, a property a line.
func (st *statsView) rows(t *table) {
	bytes := func(d decimalBytes) string { return fmt.Sprintf("%s (%d bytes)", short(d), d) }
	t.row("capacity", bytes(st.Capacity))
	t.row("granted", bytes(st.Granted))
	t.row("free", bytes(st.Free))
	t.row("reserve", bytes(st.Reserve))
	t.row("used", bytes(st.Used))
	t.row("virtual", bytes(st.Virtual))
	t.row("virtual to capacity", fmt.Sprintf("%.2f", st.Ratio))
	t.row("growth", short(decimalBytes(st.Growth))+" a second")
	if st.TimeToFull > 0 {
		t.row("full in", shortDuration(time.Duration(st.TimeToFull*float64(time.Second))))
	}
	t.row("volumes", st.Volumes)
	t.row("waiting", st.Waiting)
	t.row("level", st.Level)
}
