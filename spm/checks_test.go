package spm

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Every reason against an operation has its code, and nothing is done.
func TestOperationsRefused(t *testing.T) {
	w := newWorld(t, 2, false)
	ctx := t.Context()
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	b := w.volume(image, a, "b")
	template := w.at(uuid.New(), uuid.New())
	kind, args, err := w.ops.copyImage(ctx, CopyImage{From: w.at(image, b), To: template, Type: Shared})
	w.must(kind, args, err)
	clone := w.newVolume(uuid.New(), uuid.New())
	clone.ParentImage, clone.Parent = template.Image, template.Volume
	kind, args, err = w.ops.createVolume(ctx, clone)
	w.must(kind, args, err)
	bad := w.volume(uuid.New(), uuid.Nil, "x")
	badImage := w.m[0].info(bad).Image
	require.NoError(t, w.ops.mark(ctx, w.domain(), badImage, []uuid.UUID{bad}, Illegal))
	served := w.volume(uuid.New(), uuid.Nil, "s")
	servedImage := w.m[0].info(served).Image
	_, err = w.ops.prepare(ctx, w.at(servedImage, served), PrepareOptions{})
	require.NoError(t, err)
	no, other := uuid.New(), w.m[1].ident.domain

	create := func(change func(r *NewVolume)) error {
		r := w.newVolume(uuid.New(), uuid.New())
		change(&r)
		_, _, err := w.ops.createVolume(ctx, r)
		return err
	}
	remove := func(r DeleteVolumes) error {
		if r.Domain == uuid.Nil {
			r.Domain = w.domain()
		}
		_, _, err := w.ops.deleteVolumes(ctx, r)
		return err
	}
	removeImage := func(r DeleteImage) error {
		if r.Domain == uuid.Nil {
			r.Domain = w.domain()
		}
		_, _, err := w.ops.deleteImage(ctx, r)
		return err
	}
	copyTo := func(from VolumeAt, to VolumeAt, format, alloc string) error {
		_, _, err := w.ops.copyImage(ctx, CopyImage{From: from, To: to, Format: format, Alloc: alloc})
		return err
	}
	move := func(r MoveImage) error {
		_, _, err := w.ops.moveImage(ctx, r)
		return err
	}
	merge := func(domain, image, down, up uuid.UUID) error {
		_, _, err := w.ops.mergeVolumes(ctx, MergeVolumes{Domain: domain, Image: image, Ancestor: down, Successor: up})
		return err
	}
	extendTo := func(at VolumeAt, size int64) error {
		_, _, err := w.ops.extendVolumeSize(ctx, at, size)
		return err
	}
	reduce := func(at VolumeAt) error {
		_, _, err := w.ops.reduceVolume(ctx, at)
		return err
	}
	free := func() VolumeAt { return w.at(uuid.New(), uuid.New()) }
	elsewhere := func(at VolumeAt, domain uuid.UUID) VolumeAt { at.Domain = domain; return at }
	wrongPool := w.at(image, b)
	wrongPool.Pool = no
	full := int64(100 * gib)

	for name, c := range map[string]struct {
		err  error
		code Code
	}{
		"create: domain":            {create(func(r *NewVolume) { r.Domain = no }), CodeUnknownDomain},
		"create: pool":              {create(func(r *NewVolume) { r.Pool = no }), CodeWrongPool},
		"create: volume is there":   {create(func(r *NewVolume) { r.Volume = a }), CodeExists},
		"create: image is there":    {create(func(r *NewVolume) { r.Image = image }), CodeExists},
		"create: parent":            {create(func(r *NewVolume) { r.Image, r.Parent = image, no }), CodeNotFound},
		"create: parent's image":    {create(func(r *NewVolume) { r.ParentImage, r.Parent = no, a }), CodeUnknownImage},
		"create: not on the leaf":   {create(func(r *NewVolume) { r.Image, r.Parent = image, a }), CodeHasChildren},
		"create: no template":       {create(func(r *NewVolume) { r.ParentImage, r.Parent = image, b }), CodeWrongState},
		"create: illegal parent":    {create(func(r *NewVolume) { r.Image, r.Parent = badImage, bad }), CodeIllegal},
		"create: smaller":           {create(func(r *NewVolume) { r.Image, r.Parent, r.Size = image, b, mib }), CodeInvalid},
		"create: size":              {create(func(r *NewVolume) { r.Size = 100 }), CodeInvalid},
		"create: no size":           {create(func(r *NewVolume) { r.Size = 0 }), CodeInvalid},
		"create: format":            {create(func(r *NewVolume) { r.Format = "VMDK" }), CodeInvalid},
		"create: allocation":        {create(func(r *NewVolume) { r.Alloc = "" }), CodeInvalid},
		"create: type":              {create(func(r *NewVolume) { r.Type = Internal }), CodeInvalid},
		"create: raw on a parent":   {create(func(r *NewVolume) { r.Image, r.Parent, r.Format = image, b, Raw }), CodeInvalid},
		"create: priority":          {create(func(r *NewVolume) { r.Priority = 5000 }), CodeInvalid},
		"create: description":       {create(func(r *NewVolume) { r.Description = "two\nlines" }), CodeInvalid},
		"create: two lines":         {create(func(r *NewVolume) { r.Description = "a\nGEN=7" }), CodeInvalid},
		"create: initial size":      {create(func(r *NewVolume) { r.Initial = -1 }), CodeInvalid},
		"create: no space":          {create(func(r *NewVolume) { r.Format, r.Alloc, r.Size = Raw, Preallocated, full }), CodePoolFull},
		"create: no UUID":           {create(func(r *NewVolume) { r.Volume = uuid.Nil }), CodeInvalid},
		"create: larger and served": {create(func(r *NewVolume) { r.Image, r.Parent, r.Size = servedImage, served, 2*gib }), CodeInUse},

		"delete: domain":   {remove(DeleteVolumes{Domain: no, Image: image, Volumes: []uuid.UUID{b}}), CodeUnknownDomain},
		"delete: image":    {remove(DeleteVolumes{Image: no, Volumes: []uuid.UUID{b}}), CodeUnknownImage},
		"delete: volume":   {remove(DeleteVolumes{Image: image, Volumes: []uuid.UUID{no}}), CodeNotFound},
		"delete: none":     {remove(DeleteVolumes{Image: image}), CodeInvalid},
		"delete: children": {remove(DeleteVolumes{Image: image, Volumes: []uuid.UUID{a}}), CodeHasChildren},
		"delete: template": {remove(DeleteVolumes{Image: template.Image, Volumes: []uuid.UUID{template.Volume}}), CodeWrongState},
		"delete: illegal":  {remove(DeleteVolumes{Image: badImage, Volumes: []uuid.UUID{bad}}), CodeIllegal},
		"delete: busy":     {remove(DeleteVolumes{Image: servedImage, Volumes: []uuid.UUID{served}}), CodeInUse},

		"delete image: domain":   {removeImage(DeleteImage{Domain: no, Image: image}), CodeUnknownDomain},
		"delete image: image":    {removeImage(DeleteImage{Image: no}), CodeUnknownImage},
		"delete image: template": {removeImage(DeleteImage{Image: template.Image}), CodeHasChildren},
		"delete image: illegal":  {removeImage(DeleteImage{Image: badImage}), CodeIllegal},
		"delete image: busy":     {removeImage(DeleteImage{Image: servedImage}), CodeInUse},

		"copy: from domain":     {copyTo(elsewhere(w.at(image, b), no), free(), "", ""), CodeUnknownDomain},
		"copy: to domain":       {copyTo(w.at(image, b), elsewhere(free(), no), "", ""), CodeUnknownDomain},
		"copy: image":           {copyTo(w.at(no, b), free(), "", ""), CodeUnknownImage},
		"copy: volume":          {copyTo(w.at(image, no), free(), "", ""), CodeNotFound},
		"copy: illegal":         {copyTo(w.at(badImage, bad), free(), "", ""), CodeIllegal},
		"copy: volume is there": {copyTo(w.at(image, b), w.at(no, a), "", ""), CodeExists},
		"copy: image is there":  {copyTo(w.at(image, b), w.at(image, no), "", ""), CodeExists},
		"copy: format":          {copyTo(w.at(image, b), free(), "VMDK", ""), CodeInvalid},
		"copy: allocation":      {copyTo(w.at(image, b), free(), "", "SOME"), CodeInvalid},
		"copy: busy":            {copyTo(w.at(servedImage, served), free(), "", ""), CodeInUse},

		"move: from domain": {move(MoveImage{From: no, To: other, Image: image}), CodeUnknownDomain},
		"move: to domain":   {move(MoveImage{From: w.domain(), To: no, Image: image}), CodeUnknownDomain},
		"move: image":       {move(MoveImage{From: w.domain(), To: other, Image: no}), CodeUnknownImage},
		"move: nowhere":     {move(MoveImage{From: w.domain(), To: w.domain(), Image: image}), CodeInvalid},
		"move: illegal":     {move(MoveImage{From: w.domain(), To: other, Image: badImage}), CodeIllegal},
		"move: no template": {move(MoveImage{From: w.domain(), To: other, Image: clone.Image}), CodeWrongState},
		"move: template":    {move(MoveImage{From: w.domain(), To: other, Image: template.Image}), CodeHasChildren},
		"move: busy":        {move(MoveImage{From: w.domain(), To: other, Image: servedImage}), CodeInUse},

		"merge: domain":   {merge(no, image, a, b), CodeUnknownDomain},
		"merge: image":    {merge(w.domain(), no, a, b), CodeUnknownImage},
		"merge: volume":   {merge(w.domain(), image, a, no), CodeNotFound},
		"merge: reversed": {merge(w.domain(), image, b, a), CodeInvalid},

		"extend: domain":   {extendTo(elsewhere(w.at(image, b), no), 2*gib), CodeUnknownDomain},
		"extend: pool":     {extendTo(wrongPool, 2*gib), CodeWrongPool},
		"extend: image":    {extendTo(w.at(no, b), 2*gib), CodeUnknownImage},
		"extend: volume":   {extendTo(w.at(image, no), 2*gib), CodeNotFound},
		"extend: smaller":  {extendTo(w.at(image, b), mib), CodeInvalid},
		"extend: odd":      {extendTo(w.at(image, b), 2*gib+1), CodeInvalid},
		"extend: children": {extendTo(w.at(image, a), 2*gib), CodeHasChildren},
		"extend: template": {extendTo(template, 2*gib), CodeWrongState},
		"extend: illegal":  {extendTo(w.at(badImage, bad), 2*gib), CodeIllegal},

		"reduce: domain":  {reduce(elsewhere(w.at(image, b), no)), CodeUnknownDomain},
		"reduce: volume":  {reduce(w.at(image, no)), CodeNotFound},
		"reduce: illegal": {reduce(w.at(badImage, bad)), CodeIllegal},
		"reduce: busy":    {reduce(w.at(servedImage, served)), CodeInUse},
	} {
		require.Error(t, c.err, name)
		require.Equal(t, c.code, CodeOf(c.err), "%s: %v", name, c.err)
	}
	w.consistent()
}

// A block domain has no raw volume that is sparse.
func TestGroupRawIsPreallocated(t *testing.T) {
	w := newWorld(t, 1, true)
	r := w.newVolume(uuid.New(), uuid.New())
	r.Format = Raw
	_, _, err := w.ops.createVolume(t.Context(), r)
	requireCode(t, CodeInvalid, err)
	src := w.volume(uuid.New(), uuid.Nil, "a")
	from := w.at(w.m[0].info(src).Image, src)
	_, args, err := w.ops.copyImage(t.Context(), CopyImage{From: from, To: w.at(uuid.New(), uuid.New()), Format: Raw})
	require.NoError(t, err)
	require.Equal(t, Preallocated, args.(copyArgs).Meta.Type)
}

// A task that finds another chain than it was asked for is refused.
func TestStaleTasks(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	b := w.volume(image, a, "b")
	merge, mergeArgs, err := w.merge(image, a, b)
	require.NoError(t, err)
	resize, resizeArgs, err := w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)
	require.NoError(t, err)
	w.must(resize, resizeArgs, nil)
	requireCode(t, CodeStale, w.run(merge, mergeArgs, -1))
	requireCode(t, CodeStale, w.run(resize, resizeArgs, -1))
	again, againArgs, err := w.merge(image, a, b)
	w.must(again, againArgs, err)
	require.EqualValues(t, 2*gib, w.m[0].info(a).Capacity)
	requireCode(t, CodeNotFound, w.run(again, againArgs, -1))

	// Of two requests for the same volume the second finds it, and leaves it alone.
	r := w.newVolume(uuid.New(), uuid.New())
	kind, args, err := w.ops.createVolume(t.Context(), r)
	require.NoError(t, err)
	w.must(kind, args, nil)
	requireCode(t, CodeExists, w.run(kind, args, -1))
	require.NotEmpty(t, w.m[0].info(r.Volume).Format)
	w.consistent()
}
