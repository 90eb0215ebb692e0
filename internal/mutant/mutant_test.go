package mutant_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/mutant"
)

// planted returns the names that the module's code asks for, with a place for
// each.
func planted(t *testing.T) map[string]string {
	names := map[string]string{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root:
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && isOn(call) {
				at := set.Position(call.Pos()).String()
				name, ok := call.Args[0].(*ast.BasicLit)
				require.True(t, ok && name.Kind == token.STRING, "%s: the name of a mutant is a literal", at)
				s, err := strconv.Unquote(name.Value)
				require.NoError(t, err)
				names[s] = at
			}
			return true
		})
		return nil
	})
	require.NoError(t, err)
	return names
}

func isOn(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != "On" || len(call.Args) != 1 {
		return false
	}
	pkg, ok := f.X.(*ast.Ident)
	return ok && pkg.Name == "mutant"
}

// TestTable: what is planted is listed, what is listed is planted, once each.
func TestTable(t *testing.T) {
	names := planted(t)
	listed := map[string]bool{}
	for _, m := range mutant.Table() {
		require.False(t, listed[m.Name], "%s is listed twice", m.Name)
		listed[m.Name] = true
		require.NotEmpty(t, m.Breaks, m.Name)
		require.NotEmpty(t, m.Rule, m.Name)
		require.Contains(t, names, m.Name, "listed, but planted nowhere")
		found, ok := mutant.Find(m.Name)
		require.True(t, ok)
		require.Equal(t, m, found)
	}
	for name, at := range names {
		require.True(t, listed[name], "%s: %q is planted, but not listed", at, name)
	}
}

func TestOff(t *testing.T) {
	if !mutant.Enabled {
		require.False(t, mutant.On("anything"))
	}
	_, ok := mutant.Find("no such mutant")
	require.False(t, ok)
}
