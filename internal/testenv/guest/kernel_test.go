package guest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoadOrder(t *testing.T) {
	modules := map[string]string{"a": "a.ko", "b_c": "b-c.ko", "d": "d.ko", "e": "e.ko"}
	depends := map[string][]string{"a.ko": {"b-c", "d"}, "b-c.ko": {"d"}}
	needs := func(path string) ([]string, error) { return depends[path], nil }
	order, err := loadOrder([]string{"a", "e", "d"}, modules, needs)
	require.NoError(t, err)
	require.Equal(t, []string{"d.ko", "b-c.ko", "a.ko", "e.ko"}, order)
	depends["d.ko"] = []string{"f"}
	_, err = loadOrder([]string{"a"}, modules, needs)
	require.ErrorContains(t, err, "no module f")
}
