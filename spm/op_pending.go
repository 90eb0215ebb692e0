package spm

import "context"

func (o *operations) deleteVolumes(context.Context, DeleteVolumes) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) deleteImage(context.Context, DeleteImage) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) copyImage(context.Context, CopyImage) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) moveImage(context.Context, MoveImage) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) mergeVolumes(context.Context, MergeVolumes) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) extendVolumeSize(context.Context, VolumeAt, int64) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
func (o *operations) reduceVolume(context.Context, VolumeAt) (string, any, error) {
	return "", nil, errorf(CodeInvalid, "not yet")
}
