package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"tidemark/internal/hostfile"
)

// A stable makes the images that cells begin with, once, and copies them.
type stable struct{ dir string }

// former is what each byte of an image's first part is, before a cell begins.
func (k imageKind) former() byte {
	switch {
	case k.backing:
		return 2
	case k.full > 0:
		return 1
	}
	return 0
}

func (s stable) path(k imageKind, raw bool) string {
	format := "qcow2"
	if raw {
		format = "raw"
	}
	return filepath.Join(s.dir, fmt.Sprintf("%d-%d-%t-%t-%t.%s", k.size, k.full, k.backing, k.extended, k.snapshot, format))
}

func (s stable) backing() string { return filepath.Join(s.dir, "backing.raw") }

// fresh makes a copy of the image at path.
func (s stable) fresh(ctx context.Context, k imageKind, raw bool, path string) error {
	from := s.path(k, raw)
	if _, err := os.Stat(from); err != nil {
		if err := s.make(ctx, k, raw, from); err != nil {
			return fmt.Errorf("make %s: %w", from, err)
		}
	}
	return run(ctx, "cp", "--sparse=auto", from, path)
}

func (s stable) make(ctx context.Context, k imageKind, raw bool, path string) error {
	size := strconv.FormatInt(k.size, 10)
	if raw {
		if err := run(ctx, "truncate", "-s", size, path); err != nil || k.full == 0 {
			return err
		}
		return run(ctx, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 1 0 %d", k.full), path)
	}
	args := []string{"create", "-q", "-f", "qcow2"}
	if k.extended {
		args = append(args, "-o", "extended_l2=on")
	}
	if k.backing {
		if err := s.makeBacking(ctx, k); err != nil {
			return err
		}
		args = append(args, "-b", s.backing(), "-F", "raw")
	}
	if err := run(ctx, "qemu-img", append(args, path, size)...); err != nil {
		return err
	}
	for off := int64(0); off < k.full; off += 64 * mib {
		if err := run(ctx, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P 1 %d %d", off, min(64*mib, k.full-off)), path); err != nil {
			return err
		}
	}
	if k.snapshot {
		return run(ctx, "qemu-img", "snapshot", "-q", "-c", "s", path)
	}
	return nil
}

func (s stable) makeBacking(ctx context.Context, k imageKind) error {
	if _, err := os.Stat(s.backing()); err == nil {
		return nil
	}
	if err := run(ctx, "truncate", "-s", strconv.FormatInt(k.size, 10), s.backing()); err != nil {
		return err
	}
	for off := int64(0); off < k.size; off += gib {
		if err := run(ctx, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 2 %d %d", off, min(gib, k.size-off)), s.backing()); err != nil {
			return err
		}
	}
	return nil
}

// forget writes a file to the storage and takes it out of the page cache. What was
// copied lies there in folios of up to 2 MiB, of which ext4 looks at every block
// when 4 KiB of it are written: a bare loop of pwrite makes 40,000 to 250,000 a second
// then, and 500,000 in a file that was read or written in small pieces.
func forget(path string) error {
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(f.DropCache(), f.Close())
}

// run runs a program, whose output is part of its error.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// output runs a program and returns its standard output.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var out, errs strings.Builder
	c := exec.CommandContext(ctx, name, args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %q: %w: %s%s", name, args, err, out.String(), errs.String())
	}
	return out.String(), nil
}
