package main

import (
	"math"
	"slices"
	"time"
)

// The names of the pools.
const (
	onDirectory = "directory"
	onLVM       = "LVM"
	asVDSM      = "LVM, VDSM's path"
)

// The operations.
const (
	opCreate         = "createVolume"
	opSnapshot       = "snapshot"
	opDeleteSnapshot = "delete snapshot"
	opDeleteVolume   = "delete volume"
	opExtend         = "extension"
)

// A cell is one operation at one size. Times are in milliseconds.
type cell struct {
	Pool string `json:"pool"`
	Op   string `json:"op"`
	At   int    `json:"at"` // volumes besides, or volumes that cross at once
	N    int    `json:"n"`  // how many were timed

	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// All is how long it took until the last of those that crossed at once was
	// answered: the longest of the rounds.
	All float64 `json:"all_ms,omitempty"`

	// What lvm itself took, for each operation: see the package comment.
	LVMCommands float64 `json:"lvm_commands,omitempty"`
	LVM         float64 `json:"lvm_ms,omitempty"`
}

func newCell(pool, op string, at int, times []time.Duration) cell {
	return cell{
		Pool: pool, Op: op, At: at, N: len(times),
		P50: millis(quantile(times, 0.50)), P99: millis(quantile(times, 0.99)), Max: millis(quantile(times, 1)),
	}
}

// quantile is the smallest time that is not below a share q of them.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[max(int(math.Ceil(q*float64(len(sorted)))), 1)-1]
}

// tailNeeds is of how many times a 99th percentile is not simply the longest.
const tailNeeds = 101

// tail reports whether the cell has a 99th percentile.
func (c cell) tail() bool { return c.N >= tailNeeds }

func millis(d time.Duration) float64 { return math.Round(d.Seconds()*1e5) / 100 }
