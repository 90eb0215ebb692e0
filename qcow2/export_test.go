package qcow2

// Settled is closed when settling after open has ended.
func (im *Image) Settled() <-chan struct{} { return im.settled }

// WaitIdle waits until the engine does nothing by itself.
func (im *Image) WaitIdle() { im.tasks.Wait() }
