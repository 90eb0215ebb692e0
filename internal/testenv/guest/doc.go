// Package guest boots a Linux guest for a test: Debian's kernel in QEMU, with an
// agent as its only program, which does what the test asks for.
//
//	test  --Run, Fill ...-->  Guest  --serial port-->  agent (/init)  -->  kernel
//
// It is a package of its own, because the tests of the commands and those of
// package lvm use it: the ones for a guest whose disk Tidemark serves, the others
// for a kernel that has device-mapper. It knows nothing of either.
//
// # What it is made of
//
// The kernel comes from Debian's package for virtual machines, which tools/deps
// unpacks below .cache/guest and installs nowhere; it is small, has ext4 built in,
// and boots in 2.5 s without a processor's help (TCG). There is no KVM: hosts that
// are guests themselves offer it and hang.
//
// The initramfs is made here for each guest: the agent, the modules that the test
// names with those that they depend on, in load order, and programs of the host
// with their shared libraries. There is no shell and no udev, so that nothing
// happens in the guest but what the test asks for.
//
// # How it ends
//
// The test talks to the agent through QEMU's second serial port, which is a unix
// socket here; the first one is the console, which is printed when the test
// fails. A guest that takes longer than its deadline is killed by its process
// number, as every guest is at the end of its test and when the test process dies.
package guest
