//go:build !linux

package redo

import "errors"

// DefaultSlots is a ring of 512 KiB.
const DefaultSlots = 1 << 14

// ErrNone: there is no ring of that name of this boot.
var ErrNone = errors.New("no redo ring of this boot")

// A Record is what its writer makes of it.
type Record struct{ A, B, C uint64 }

// A Ring does not exist on this system.
type Ring struct{}

var errSystem = errors.New("redo rings need Linux")

// Create fails.
func Create(string, uint64, int) (*Ring, error) { return nil, errSystem }

// Open fails.
func Open(string, uint64) (*Ring, []Record, error) { return nil, nil, ErrNone }

// The methods are never called, as there is no Ring.

func (r *Ring) Reserve(int) bool { return false }
func (r *Ring) Release(int)      {}
func (r *Ring) Append(Record)    {}
func (r *Ring) Head() uint64     { return 0 }
func (r *Ring) Trim(uint64)      {}
func (r *Ring) Crowded() bool    { return false }
func (r *Ring) Slots() int       { return 0 }
func (r *Ring) Distrust()        {}
func (r *Ring) Distrusted() bool { return false }
func (r *Ring) Close() error     { return nil }
func (r *Ring) Remove() error    { return nil }

// Mark fails.
func Mark(string, string) error { return errSystem }

// Marked finds none.
func Marked(string, string) (bool, error) { return false, nil }

// Unmark has nothing to do.
func Unmark(string, string) error { return nil }
