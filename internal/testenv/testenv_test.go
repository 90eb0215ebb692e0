//go:build unix

package testenv_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// probe is a testing.TB that notes how it was ended.
type probe struct {
	testing.TB
	how string
}

func (p *probe) Helper() {}
func (p *probe) Skipf(format string, args ...any) {
	p.how = "skip"
	panic(p)
}

func (p *probe) Fatalf(format string, args ...any) {
	p.how = "fatal"
	panic(p)
}

func ended(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	p := &probe{TB: t}
	func() {
		defer func() { _ = recover() }() // the probe itself
		f(p)
	}()
	return p.how
}

func TestMissingToolSkipsOrFails(t *testing.T) {
	absent := func(t testing.TB) { testenv.Tool(t, "no-such-program-at-all") }
	t.Setenv("CI", "")
	require.Equal(t, "skip", ended(t, absent))
	t.Setenv("CI", "true")
	require.Equal(t, "fatal", ended(t, absent))
	require.Empty(t, ended(t, func(t testing.TB) { testenv.Tool(t, "sh") }))
	require.Equal(t, "fatal", ended(t, func(t testing.TB) { testenv.Need(t, "no such thing") }))
}

func TestSeedFromEnvironment(t *testing.T) {
	t.Setenv(testenv.SeedVar, "0x2a")
	seed, rng := testenv.Seed(t)
	require.EqualValues(t, 42, seed)
	require.Equal(t, testenv.Rand(42).Uint64(), rng.Uint64())
	t.Setenv(testenv.SeedVar, "many")
	require.Equal(t, "fatal", ended(t, func(t testing.TB) { testenv.Seed(t) }))
}

func TestTry(t *testing.T) {
	r := testenv.Try(t, "sh", "-c", "echo out; echo err >&2; exit 3")
	require.Equal(t, 3, r.ExitCode)
	require.Error(t, r.Err)
	require.Equal(t, "out\n", r.Stdout)
	require.Equal(t, "err\n", r.Stderr)
	require.Contains(t, r.String(), "err")
	require.Equal(t, "fatal", ended(t, func(t testing.TB) { testenv.Run(t, "false") }))
}

// The child leaves a grandchild behind that holds its output open; both end.
func TestTimeoutEndsTheGroup(t *testing.T) {
	var r testenv.Result
	for limit := 100 * time.Millisecond; r.Stdout == "" && limit < time.Minute; limit *= 2 { // it may have been ended before it began
		start := time.Now()
		r = testenv.TryFor(t, limit, "sh", "-c", "sleep 100 & echo $!; wait")
		require.ErrorContains(t, r.Err, "longer than "+limit.String())
		require.Less(t, time.Since(start), limit+4*time.Second, "before WaitDelay")
	}
	grandchild(t, r.Stdout)
}

func TestStartedProcessEndsWithTheTest(t *testing.T) {
	var p *testenv.Process
	t.Run("inner", func(t *testing.T) {
		p = testenv.Start(t, testenv.Command(t, "sh", "-c", "sleep 100 & echo $!; wait"))
		testenv.Eventually(t, time.Minute, "the pid", func() bool { return strings.HasSuffix(p.Output(), "\n") })
	})
	<-p.Done()
	grandchild(t, p.Output())
}

// grandchild waits until the process whose number is out is gone or a zombie
// that its new parent has not collected yet.
func grandchild(t *testing.T, out string) {
	t.Helper()
	pid := 0
	for _, c := range strings.TrimSpace(out) {
		pid = pid*10 + int(c-'0')
	}
	require.Positive(t, pid)
	testenv.Eventually(t, time.Minute, "the grandchild has ended", func() bool {
		stat := testenv.Try(t, "cat", "/proc/"+strings.TrimSpace(out)+"/stat").Stdout
		return syscall.Kill(pid, 0) != nil || strings.Contains(stat, ") Z ")
	})
}
