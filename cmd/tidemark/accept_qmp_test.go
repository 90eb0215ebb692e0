//go:build linux

package main_test

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// bootSector is a guest of 512 bytes that writes sixteen times, by the firmware:
//
//	7c00  xor ax,ax; mov ds,ax; mov ss,ax; mov sp,7c00; mov cx,16
//	7c0c  push cx; mov si,7c34; mov ah,43; mov al,0; mov dl,81; int 13; pop cx; jc 7c2a
//	      add dword [7c3c],128; loop 7c0c; mov al,10; jmp 7c2c
//	7c2a  mov al,11
//	7c2c  mov dx,501; out dx,al       isa-debug-exit: QEMU ends with 2*al+1
//	7c30  hlt; jmp 7c30
//	7c34  packet: 8 sectors from 7c00 to sector 2048, then each 64 KiB behind that
var bootSector = append(append([]byte{
	0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xb9, 0x10, 0x00, 0x51, 0xbe, 0x34, 0x7c,
	0xb4, 0x43, 0xb0, 0x00, 0xb2, 0x81, 0xcd, 0x13, 0x59, 0x72, 0x0f, 0x66, 0x81, 0x06, 0x3c, 0x7c,
	0x80, 0x00, 0x00, 0x00, 0xe2, 0xe6, 0xb0, 0x10, 0xeb, 0x02, 0xb0, 0x11, 0xba, 0x01, 0x05, 0xee,
	0xf4, 0xeb, 0xfd, 0x90, 0x10, 0x00, 0x08, 0x00, 0x00, 0x7c, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00,
}, make([]byte, 510-64)...), 0x55, 0xaa)

// A guest that a full pool has paused goes on by itself when there is space, and
// has seen no error.
func TestPausedGuestIsResumed(t *testing.T) {
	dir := workspace(t)
	qemu := testenv.Tool(t, "qemu-system-x86_64")
	p := newPool(t, filepath.Join(dir, "pool"), 256*mib)
	p.create("disk", 4*gib)
	p.create("ballast", 128*mib, "--format", "raw")
	ours, watched := filepath.Join(dir, "ours"), filepath.Join(dir, "watched")
	s := p.serve("disk", "--patience", "1s", "--qmp", ours)
	c := s.dial()
	var err error
	for at := int64(gib); err == nil; at += mib {
		err = c.WriteAt(t.Context(), patterned(1, at, mib), at, 0)
	}
	require.ErrorContains(t, err, "ENOSPC")

	boot := filepath.Join(dir, "boot")
	require.Len(t, bootSector, 512)
	require.NoError(t, os.WriteFile(boot, bootSector, 0o600))
	guest := testenv.Start(t, testenv.Command(t, qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,accel=tcg", "-m", "64", "-drive", "file="+boot+",format=raw,if=ide,index=0",
		"-blockdev", "driver=nbd,node-name=n0,server.type=unix,server.path="+s.sock+",reconnect-delay=30",
		"-device", "virtio-blk-pci,drive=n0,werror=stop,rerror=stop", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
		"-qmp", "unix:"+ours+",server=on,wait=off", "-qmp", "unix:"+watched+",server=on,wait=off"))
	q := dialQMP(t, watched)
	testenv.Eventually(t, time.Minute, "QEMU has paused its guest: "+guest.Output(), func() bool { return q.status() == "io-error" })
	time.Sleep(2 * resumeLimit)
	require.Equal(t, "io-error", q.status(), "there is no space yet")

	ok(t, "volume", "remove", "--spm", p.socket, "ballast")
	removed := time.Now()
	err = guest.Wait(t, time.Minute)
	t.Logf("the guest ended %v after there was space: %v", time.Since(removed).Round(time.Millisecond), err)
	require.Equal(t, 0x10<<1|1, guest.Cmd.ProcessState.ExitCode(), "the guest saw no error\n%s", guest.Output())
	require.Contains(t, s.proc.Output(), "QEMU was asked to go on")

	// All its writes are there: each of what was in memory at 7c00.
	for i := range int64(16) {
		got := make([]byte, 32)
		require.NoError(t, c.ReadAt(t.Context(), got, mib+i*64<<10, 0))
		require.Equal(t, bootSector[:32], got, "write %d", i)
	}
	s.stop()
}

// A qmpWatcher asks for the state of a guest.
type qmpWatcher struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
}

func dialQMP(t *testing.T, socket string) *qmpWatcher {
	t.Helper()
	q := &qmpWatcher{t: t}
	testenv.Eventually(t, startLimit, "QEMU listens", func() (ok bool) {
		var err error
		q.conn, err = net.Dial("unix", socket)
		return err == nil
	})
	t.Cleanup(func() { _ = q.conn.Close() })
	q.in = json.NewDecoder(q.conn)
	require.NoError(t, q.in.Decode(&struct{}{}), "greeting")
	q.execute("qmp_capabilities")
	return q
}

func (q *qmpWatcher) execute(command string) (out map[string]any) {
	q.t.Helper()
	_, err := q.conn.Write([]byte(`{"execute":"` + command + `"}`))
	require.NoError(q.t, err)
	for {
		var m struct {
			Return map[string]any
			Event  string
		}
		require.NoError(q.t, q.in.Decode(&m))
		if m.Event == "" {
			return m.Return
		}
	}
}

func (q *qmpWatcher) status() string {
	s, _ := q.execute("query-status")["status"].(string)
	return s
}
