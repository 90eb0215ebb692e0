package spm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// one is the UUID of a volume or an image of a single letter.
func one(c byte) uuid.UUID { return uuid.UUID{c} }

// kinOf reads a family: "a LEAF", "b<a INTERNAL!", "c/I SHARED", "d?". A volume is
// of image i unless it says another; ! is illegal, ? damaged.
func kinOf(text string) *family {
	var all []kin
	for _, s := range strings.Split(text, ", ") {
		head, voltype, _ := strings.Cut(s, " ")
		k := kin{id: one(head[0]), image: one('i'), damaged: strings.HasSuffix(head, "?")}
		if at := strings.IndexByte(head, '<'); at > 0 {
			k.meta.Parent = one(head[at+1])
		}
		if at := strings.IndexByte(head, '/'); at > 0 {
			k.image = one(head[at+1])
		}
		k.meta.Legality = Legal
		if voltype, illegal := strings.CutSuffix(voltype, "!"); illegal {
			k.meta.Legality, k.meta.VolType = Illegal, voltype
		} else {
			k.meta.VolType = voltype
		}
		k.meta.Sequence = int64(head[0])
		all = append(all, k)
	}
	return newFamily(all)
}

// letters are the letters of UUIDs.
func letters(ids []uuid.UUID) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteByte(id[0])
	}
	return b.String()
}

func kinLetters(all []kin) string {
	var ids []uuid.UUID
	for _, k := range all {
		ids = append(ids, k.id)
	}
	return letters(ids)
}

func TestChainLeafAndReconcile(t *testing.T) {
	for _, c := range []struct{ name, family, leaf, reconciled string }{
		{"one", "a LEAF", "a", "a LEAF"},
		{"snapshots", "a INTERNAL, b<a INTERNAL, c<b LEAF", "c", "a INTERNAL, b INTERNAL, c LEAF"},
		{"a snapshot whose parent was not changed yet", "a LEAF, b<a LEAF", "b", "a INTERNAL, b LEAF"},
		{"the leaf has gone", "a INTERNAL", "a", "a LEAF"},
		{"the leaf is on its way out", "a INTERNAL, b<a LEAF!", "a", "a LEAF, b LEAF"},
		{"merging", "a INTERNAL!, b<a LEAF", "b", "a INTERNAL, b LEAF"},
		{"merged into the base, before the others are illegal", "a LEAF, b<a INTERNAL, c<b LEAF", "c", "a INTERNAL, b INTERNAL, c LEAF"},
		{"merged into the base", "a LEAF, b<a INTERNAL!, c<b LEAF!", "a", "a LEAF, b INTERNAL, c LEAF"},
		{"merged, before the children are based on the ancestor", "a INTERNAL, b<a INTERNAL!, c<b LEAF", "c", "a INTERNAL, b INTERNAL, c LEAF"},
		{"copying", "a LEAF!", "a", "a LEAF"},
		{"moving", "a INTERNAL!, b<a LEAF!", "b", "a INTERNAL, b LEAF"},
		{"moved, the leaf is legal", "a INTERNAL!, b<a LEAF", "b", "a INTERNAL, b LEAF"},
		{"damaged above: nobody knows", "a INTERNAL, b?", "", "a INTERNAL, b "},
		{"a template is covered by none of another image", "a SHARED, b/j<a LEAF", "a", "a SHARED, b LEAF"},
		{"based on itself", "a<b INTERNAL, b<a LEAF", "", "a INTERNAL, b INTERNAL"},
	} {
		f := kinOf(c.family)
		leaf, ok := f.leaf(one('i'))
		require.Equal(t, c.leaf != "", ok, c.name)
		if ok {
			require.Equal(t, c.leaf, letters([]uuid.UUID{leaf}), c.name)
		}
		var out []string
		for id := byte('a'); id <= 'z'; id++ {
			if k, there := f.all[one(id)]; there {
				out = append(out, fmt.Sprintf("%c %s", id, f.reconcile(k)))
			}
		}
		require.Equal(t, c.reconciled, strings.Join(out, ", "), c.name)
	}
}

func TestChainUp(t *testing.T) {
	for _, c := range []struct {
		family string
		of     byte
		chain  string
		code   Code
	}{
		{"a INTERNAL, b<a INTERNAL, c<b LEAF", 'c', "abc", 0},
		{"a INTERNAL, b<a INTERNAL, c<b LEAF", 'b', "ab", 0},
		{"t/j SHARED, a<t INTERNAL, b<a LEAF", 'b', "tab", 0},
		{"a LEAF", 'x', "", CodeNotFound},
		{"b<a LEAF", 'b', "", CodeDamaged},
		{"a?, b<a LEAF", 'b', "", CodeDamaged},
		{"a<b LEAF, b<a LEAF", 'b', "", CodeDamaged},
	} {
		chain, err := kinOf(c.family).chain(one(c.of))
		if c.code != 0 {
			requireCode(t, c.code, err)
			continue
		}
		require.NoError(t, err, c.family)
		require.Equal(t, c.chain, kinLetters(chain))
	}
}

func TestChainDecides(t *testing.T) {
	snapshot := func(of, parent byte) func(f *family) (string, error) {
		return func(f *family) (string, error) {
			k, err := f.maySnapshot(one('i'), one(of), one(parent))
			return kinLetters([]kin{k}), err
		}
	}
	remove := func(force bool, ids string) func(f *family) (string, error) {
		return func(f *family) (string, error) {
			var all []uuid.UUID
			for _, id := range []byte(ids) {
				all = append(all, one(id))
			}
			order, err := f.mayDelete(one('i'), all, force)
			return letters(order), err
		}
	}
	merge := func(down, up byte) func(f *family) (string, error) {
		return func(f *family) (string, error) {
			run, err := f.mayMerge(one('i'), one(down), one(up))
			return kinLetters(run), err
		}
	}
	image := func(image byte, force bool) func(f *family) (string, error) {
		return func(f *family) (string, error) {
			order, err := f.mayDeleteImage(one(image), force)
			return letters(order), err
		}
	}
	const three = "a INTERNAL, b<a INTERNAL, c<b LEAF"
	for _, c := range []struct {
		name, family string
		decide       func(*family) (string, error)
		want         string
		code         Code
	}{
		{"snapshot of the leaf", three, snapshot('i', 'c'), "c", 0},
		{"snapshot of another", three, snapshot('i', 'b'), "", CodeHasChildren},
		{"snapshot of an illegal one", "a LEAF!", snapshot('i', 'a'), "", CodeIllegal},
		{"snapshot of a damaged one", "a?", snapshot('i', 'a'), "", CodeDamaged},
		{"snapshot of nothing", "a LEAF", snapshot('i', 'x'), "", CodeNotFound},
		{"snapshot of no image", "a LEAF", snapshot('x', 'x'), "", CodeUnknownImage},
		{"on a template", "t/j SHARED", snapshot('j', 't'), "t", 0},
		{"on a template that others are based on", "t/j SHARED, x/k<t LEAF", snapshot('j', 't'), "t", 0},
		{"on no template", "t/j LEAF", snapshot('j', 't'), "", CodeWrongState},
		{"on a template, in its image", "t SHARED", snapshot('i', 't'), "", CodeWrongState},
		{"on a template, with volumes", "t/j SHARED, a LEAF", snapshot('j', 't'), "", CodeExists},

		{"delete the leaf", three, remove(false, "c"), "c", 0},
		{"delete from the leaf down", three, remove(false, "bc"), "cb", 0},
		{"delete below the leaf", three, remove(false, "b"), "", CodeHasChildren},
		{"delete an illegal one", "a LEAF, b<a LEAF!", remove(false, "b"), "", CodeIllegal},
		{"delete it by force", "a LEAF, b<a LEAF!", remove(true, "b"), "b", 0},
		{"delete a damaged one by force", "a LEAF, b?", remove(true, "b"), "b", 0},
		{"delete a damaged one", "a LEAF, b?", remove(false, "b"), "", CodeIllegal},
		{"delete a template", "a SHARED", remove(true, "a"), "", CodeWrongState},
		{"delete nothing", "a LEAF", remove(false, ""), "", CodeInvalid},
		{"delete one that is not there", "a LEAF", remove(false, "x"), "", CodeNotFound},

		{"delete all that is whole of a torn one", "a INTERNAL!, b<a INTERNAL!, c<b LEAF", remove(false, "c"), "", CodeIllegal},
		{"delete it by force", "a INTERNAL!, b<a INTERNAL!, c<b LEAF", remove(true, "bc"), "", CodeIllegal},
		{"delete the torn ones as well, by force", "a INTERNAL!, b<a INTERNAL!, c<b LEAF", remove(true, "abc"), "cba", 0},
		{"delete above what is whole of a torn one", "a INTERNAL!, b<a INTERNAL, c<b LEAF", remove(false, "c"), "c", 0},

		{"delete an image", three, image('i', false), "cba", 0},
		{"delete a template's image", "t SHARED", image('i', false), "t", 0},
		{"delete a template in use", "t SHARED, x/k<t LEAF", image('i', true), "", CodeHasChildren},
		{"delete an image with an illegal volume", "a LEAF!", image('i', false), "", CodeIllegal},
		{"delete it by force", "a LEAF!, b?", image('i', true), "ab", 0},
		{"delete no image", "a LEAF", image('x', true), "", CodeUnknownImage},

		{"merge the leaf", three, merge('b', 'c'), "bc", 0},
		{"merge all", three, merge('a', 'c'), "abc", 0},
		{"merge again", "a INTERNAL!, b<a LEAF", merge('a', 'b'), "ab", 0},
		{"merge all again", "a INTERNAL!, b<a INTERNAL!, c<b LEAF", merge('a', 'c'), "abc", 0},
		{"merge a part again", "a INTERNAL!, b<a INTERNAL!, c<b LEAF", merge('a', 'b'), "", CodeIllegal},
		{"merge further down than again", "z INTERNAL, a<z INTERNAL!, b<a LEAF", merge('z', 'b'), "", CodeIllegal},
		{"merge upside down", three, merge('c', 'b'), "", CodeInvalid},
		{"merge itself", three, merge('b', 'b'), "", CodeInvalid},
		{"merge an illegal successor", "a INTERNAL, b<a LEAF!", merge('a', 'b'), "", CodeIllegal},
		{"merge into a template", "t/j SHARED, a<t LEAF", merge('t', 'a'), "", CodeNotFound},
		{"merge into a shared base", "a SHARED, b<a LEAF", merge('a', 'b'), "", CodeWrongState},
		{"merge with a sibling", "a INTERNAL, b<a LEAF, c<a LEAF!", merge('a', 'b'), "", CodeHasChildren},
		{"merge with children above", "a INTERNAL, b<a INTERNAL, c<b LEAF, d<b LEAF", merge('a', 'b'), "ab", 0},
		{"merge nothing", three, merge('a', 'x'), "", CodeNotFound},
	} {
		got, err := c.decide(kinOf(c.family))
		if c.code != 0 {
			require.Error(t, err, c.name)
			require.Equal(t, c.code, CodeOf(err), "%s: %v", c.name, err)
			continue
		}
		require.NoError(t, err, c.name)
		require.Equal(t, c.want, got, c.name)
	}
}

func TestGenerationWraps(t *testing.T) {
	require.Equal(t, 1, nextGeneration(0))
	require.Equal(t, 999, nextGeneration(998))
	require.Equal(t, 0, nextGeneration(999))
}
