package task

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/google/uuid"
)

// A MemoryStore keeps records for as long as the process lives: for tasks that
// mean nothing to another one. Its zero value is empty.
type MemoryStore struct {
	mu      sync.Mutex // guards records
	records map[uuid.UUID]Record
}

var _ Store = (*MemoryStore)(nil)

// Load is described at Store.
func (s *MemoryStore) Load(context.Context) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.records)), nil
}

// Save is described at Store.
func (s *MemoryStore) Save(_ context.Context, r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = map[uuid.UUID]Record{}
	}
	s.records[r.ID] = r
	return nil
}

// Delete is described at Store.
func (s *MemoryStore) Delete(_ context.Context, id uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, id)
	return nil
}
