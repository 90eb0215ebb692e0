package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"tidemark/spm"
)

// poolState is what is kept in --state: what the pool was when the manager last
// looked. Nobody reads it but people and programs that want to know something
// while no manager runs. What matters lives in the pool itself; a manager that finds
// nothing there, or nonsense, or another pool's, does not notice.
type poolState struct {
	Pool    spm.PoolReply `json:"pool"`
	Volumes []spm.Volume  `json:"volumes"`
}

// saveState writes it to POOL.json in dir, in one step. It is a cache: it is not
// made durable.
func (p *pool) saveState(ctx context.Context, dir string) error {
	info, err := p.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if spm.CodeOf(err) == spm.CodeStopping {
		return nil // no pool is managed
	}
	if err != nil {
		return err
	}
	l, err := p.ListVolumes(ctx, spm.VolumeListRequest{})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(poolState{info, l.Volumes}, "", "    ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	path := filepath.Join(dir, info.PoolUUID+".json")
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return errors.Join(fmt.Errorf("--state: %w", err), os.Remove(path+".new"))
	}
	return nil
}
