package testenv_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// A program does not outlive the test process, even if that is killed.
func TestProgramsEndWithAKilledTest(t *testing.T) {
	const asVictim = "TIDEMARK_TEST_VICTIM"
	if os.Getenv(asVictim) != "" {
		p := testenv.Start(t, testenv.Command(t, testenv.Tool(t, "sleep"), "300"))
		os.Stdout.WriteString("pid " + strconv.Itoa(p.Cmd.Process.Pid) + "\n")
		_ = p.Wait(t, 5*time.Minute)
		return
	}
	own, err := os.Executable()
	require.NoError(t, err)
	cmd := testenv.Command(t, own, "-test.run=^TestProgramsEndWithAKilledTest$")
	cmd.Env = append(os.Environ(), asVictim+"=1")
	victim := testenv.Start(t, cmd)
	pid := 0
	testenv.Eventually(t, time.Minute, "the test has started a program", func() bool {
		_, after, found := strings.Cut(victim.Output(), "pid ")
		number, _, whole := strings.Cut(after, "\n")
		pid, err = strconv.Atoi(number)
		return found && whole && err == nil
	})
	require.NoError(t, unix.Kill(victim.Cmd.Process.Pid, unix.SIGKILL)) // it alone, not its group
	grandchild(t, strconv.Itoa(pid))
}
