package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"tidemark/spm"
)

// newPoolReconstruct is for a pool that nobody manages and whose master is lost; where
// one is managed, "domain deactivate --new-master" does more.
func newPoolReconstruct(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "reconstruct POOL", Short: "Make another domain the master of a pool whose master is lost",
		Long: `Make another domain the master of a pool whose master is lost, while no host manages or
is connected to the pool. The tasks of the pool are lost with the old master, which is not
believed any more when it is back: its version is lower. While the pool is managed, use
"tidemark domain deactivate MASTER --new-master DOMAIN", which keeps the tasks.`,
		Example: "  tidemark pool reconstruct 4b315b79 --master second --version 2",
		Args:    operands("POOL"), ValidArgsFunction: completePools(dial)}
	out := outputFlag(c)
	name := c.Flags().String("name", "", "of the pool (default: the one that is known, or its UUID)")
	master := c.Flags().String("master", "", "the domain of the pool that becomes its master")
	version := c.Flags().Int64("version", 0, "of the new master, higher than the old one ever had (default: one more, if that is known)")
	completeDomainFlag(c, "master", dial)
	_ = c.MarkFlagRequired("master")
	c.RunE = onePool(dial, func(c *cobra.Command, s *storage, p poolView) error {
		d, err := s.domain(c.Context(), *master)
		if err != nil {
			return err
		}
		if *version == 0 && p.MasterVersion == 0 {
			return fmt.Errorf("nobody knows which version the lost master of pool %s had: give one that is higher with --version; it begins with 1 and is one more each time the role moves", p.UUID)
		}
		states := named{}
		for id := range p.Domains {
			states[id] = string(spm.DomainActive)
		}
		p.Name = cmp.Or(*name, p.Name, p.UUID)
		err = s.ask(c.Context(), "reconstructMaster", named{"spUUID": p.UUID, "poolName": p.Name, "masterDom": d.UUID, "domDict": states,
			"masterVersion": cmp.Or(*version, p.MasterVersion+1)}, nil)
		if err != nil {
			return err
		}
		return printPool(c, out, p, "has a new master; next: tidemark pool start")
	})
	return c
}
