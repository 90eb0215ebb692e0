//go:build unix

package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// floodVar makes this test program one that attacks: "KIND N ADDRESS". It is a
// process of its own because of the descriptors.
const floodVar = "TIDEMARK_TEST_FLOOD"

func TestFloodHelper(t *testing.T) {
	f := strings.Fields(os.Getenv(floodVar))
	if len(f) != 3 {
		return // it is no test by itself, and none that was skipped
	}
	n, err := strconv.Atoi(f[1])
	require.NoError(t, err)
	for i := range n {
		c, err := net.Dial("unix", f[2])
		require.NoError(t, err)
		_, _ = c.Write(floodBytes(f[0], i)) // it may have had to give way already
		defer c.Close()
	}
	fmt.Println("flooding")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the other test ends
}

// floodBytes is what one connection sends before it is silent.
func floodBytes(kind string, i int) []byte {
	flags := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	if kind == "half-open" { // at every stage of the handshake
		b := appendOption(flags, optGo, goRequest{}.append(nil))
		return b[:i%len(b)]
	}
	b := appendOption(flags, optStructuredReply, nil)
	b = appendOption(b, optGo, goRequest{}.append(nil))
	for range 64 { // 4 MiB, which nobody reads
		b = requestHeader{cmd: cmdRead, length: 64 << 10}.append(b)
	}
	return b
}

// flood starts an attacker, and returns how to end it.
func flood(t *testing.T, kind string, n int, address string) (stop func()) {
	t.Helper()
	own, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(own, "-test.run=^TestFloodHelper$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", floodVar, kind, n, address))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line := ""
	for r := bufio.NewReader(out); line != "flooding\n"; {
		line, err = r.ReadString('\n')
		require.NoError(t, err, line)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
}

// A client that connects in the middle of an attack keeps at least three quarters
// of the speed that one has of a server beside it that is left alone, and when the
// attack is over nothing is left of it.
func TestSpeedUnderAttack(t *testing.T) {
	testenv.Need(t, "long")
	for _, row := range []struct {
		kind        string
		n           int
		connections int
	}{
		{"half-open", 10000, 12000},
		{"half-open", 10000, 100}, // most have given way
		{"slow readers", 1000, 2000},
	} {
		t.Run(fmt.Sprintf("%d %s, at most %d connections", row.n, row.kind, row.connections), func(t *testing.T) {
			goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)
			t.Run("", func(t *testing.T) {
				o := Options{MaxConnections: row.connections, HandshakeTimeout: 5 * time.Minute, WriteTimeout: 5 * time.Minute}
				const span = 1 << 20
				quiet := serve(t, o, Export{Device: newBenchDevice(t, "memory", span)})
				attacked := serve(t, o, Export{Device: newBenchDevice(t, "memory", span)})
				stop := flood(t, strings.ReplaceAll(row.kind, " ", "-"), row.n, attacked.address)
				defer stop()
				want := min(row.n, row.connections)
				eventually(t, "all there", func() bool { return attacked.Stats().Connections == want })
				if row.kind == "slow readers" {
					eventually(t, "all stalled", func() bool {
						return attacked.Stats().Requests.Read >= uint64(row.n) && attacked.taken.Load() <= 0
					})
				}
				keepsItsSpeed := func(length uint64, depth, n int) {
					ratio := 0.0
					for try := 0; try < 3 && ratio < 0.75; try++ { // others use this machine too
						ratio = relativeSpeed(t, quiet.address, attacked.address, span, length, depth, n)
						t.Logf("measured: under attack, %d KiB, depth %d: %.2f of the speed", length>>10, depth, ratio)
					}
					require.GreaterOrEqual(t, ratio, 0.75, "%d KiB, depth %d", length>>10, depth)
				}
				keepsItsSpeed(4<<10, 1, 1500)
				keepsItsSpeed(4<<10, 16, 1500)
				require.GreaterOrEqual(t, attacked.Stats().Connections, want-1, "the attack has gone on")
				// More than a connection has for itself: those who do not read give way.
				keepsItsSpeed(256<<10, 16, 64)
			})
			eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= goroutines })
			eventually(t, "all descriptors closed", func() bool { return countDescriptors(t) <= descriptors })
		})
	}
}

// relativeSpeed is how fast a new client of one server reads length bytes at a time, as a
// part of the speed of one of another: they take turns, which are short, and the
// median turn counts.
func relativeSpeed(t *testing.T, quiet, attacked string, span int64, length uint64, depth, n int) float64 {
	t.Helper()
	const turns = 41
	var took [2][]time.Duration
	var clients [2]*load
	for i, address := range []string{quiet, attacked} {
		clients[i] = newLoad(t, address, requestHeader{cmd: cmdRead, length: length}, span, depth)
		defer clients[i].close()
		require.NoError(t, clients[i].run(n))
	}
	for range turns {
		for i, c := range clients {
			start := time.Now()
			require.NoError(t, c.run(n))
			took[i] = append(took[i], time.Since(start))
		}
	}
	slices.Sort(took[0])
	slices.Sort(took[1])
	return float64(took[0][turns/2]) / float64(took[1][turns/2])
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}
