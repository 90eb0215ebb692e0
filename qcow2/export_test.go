package qcow2

// WaitIdle waits until the engine does nothing by itself.
func (im *Image) WaitIdle() { im.tasks.Wait() }
