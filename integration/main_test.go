// Package integration tests lockfs as its users meet it: real mounts, and real programs in subprocesses.
//
// Every test of lock semantics runs twice, on a tmpfs ("kernel") and on a lockfs mount ("lockfs"), so that the
// expectation itself is checked against Linux. Other processes are clients (client_test.go): the test binary run
// again in a role, told what to do line by line, so that nothing here needs a sleep to get its order.
package integration

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// roleEnv names the role that this binary plays when a test runs it again as another process.
const roleEnv = "LOCKFS_TEST_ROLE"

var (
	// workDir holds what all tests share: the binaries. Everyone may read it, since some clients run as other users.
	workDir string
	// selfBinary is a copy of this test binary that every user can execute.
	selfBinary string
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	os.Exit(runTests(m))
}

func playRole(role string) int {
	roles := map[string]func() error{
		"client":   clientMain,
		"racer":    racerMain,
		"pingpong": pingpongMain,
		"crowd":    crowdMain,
		"dotlock":  dotlockMain,
		"pairs":    pairsMain,
		"loader":   loaderMain,
		"linear":   linearMain,
		"flooder":  flooderMain,
		"worker":   workerMain,
	}
	play, ok := roles[role]
	if !ok {
		fmt.Fprintf(os.Stderr, "no role %q\n", role)
		return 2
	}
	if err := play(); err != nil {
		fmt.Fprintf(os.Stderr, "role %s: %v\n", role, err)
		return 1
	}
	return 0
}

func runTests(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount filesystems and act as several users: run them as root")
		return 1
	}
	unix.Umask(0o022)
	// A program with the race detector sleeps a second before it ends, and each mount is two of them.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	var err error
	if workDir, err = os.MkdirTemp("", "lockfs-integration-"); err == nil {
		defer os.RemoveAll(workDir)
		err = os.Chmod(workDir, 0o755)
	}
	if err == nil {
		selfBinary, err = copySelf()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func copySelf() (string, error) {
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer from.Close()
	path := filepath.Join(workDir, "lockclient")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(to, from); err != nil {
		return "", err
	}
	return path, to.Close()
}

// The two builds of the product: the one the tests use, and one always without the race detector, for measuring.
var (
	testedBinary = sync.OnceValues(func() (string, error) { return buildLockfs("lockfs", raceEnabled) })
	plainBinary  = sync.OnceValues(func() (string, error) { return buildLockfs("lockfs-plain", false) })
)

func buildLockfs(name string, race bool, flags ...string) (string, error) {
	path := filepath.Join(workDir, name)
	args := append([]string{"build", "-o", path}, flags...)
	kind, cgo := []string{"-trimpath"}, "CGO_ENABLED=0" // as make release builds: what it needs is built once
	if race {
		kind, cgo = []string{"-race", "-pgo=off"}, "CGO_ENABLED=1" // as the tests
	}
	args = append(args, kind...)
	cmd := exec.Command("go", append(args, "./cmd/lockfs")...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/lockfs: %w\n%s", err, out)
	}
	return path, nil
}
