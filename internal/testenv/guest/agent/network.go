package main

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// network gives eth0 an address; the network of an address in 10.0.0.0/8 is that,
// by the kernel's default, so that QEMU's side of it needs no route.
func network(args []string) (string, error) {
	address, err := netip.ParseAddr(args[0])
	if err != nil {
		return "", err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(s)
	eth0, err := unix.NewIfreq("eth0")
	if err != nil {
		return "", err
	}
	if err := eth0.SetInet4Addr(address.AsSlice()); err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCSIFADDR, eth0); err != nil {
		return "", fmt.Errorf("address of eth0: %w", err)
	}
	for _, name := range []string{"lo", "eth0"} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return "", err
		}
		r.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
			return "", fmt.Errorf("bring up %s: %w", name, err)
		}
	}
	return "", nil
}
