package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMetrics: what is exported is what view/stats says, also after a kill of the worker; and it is what the dashboard,
// the alerts and their manual name.
func TestMetrics(t *testing.T) {
	port := freePort(t)
	m := newCrashMount(t, "--http", port)
	playForMetrics(t, m)

	requireCounts(t, m, port, m.stats(t))
	got := mustScrape(t, port)
	for name, want := range map[string]float64{
		"lockfs_expiries_total":                                        1,
		"lockfs_forced_releases_total":                                 1,
		`lockfs_deadlocks_total{outcome="refused"}`:                    1,
		`lockfs_refusals_total{class="named"}`:                         1,
		`lockfs_refusals_total{class="flock"}`:                         1,
		`lockfs_waits_canceled_total{class="named"}`:                   1,
		`lockfs_locks_waiting{class="record"}`:                         1,
		`lockfs_wait_duration_seconds_bucket{class="named",le="+Inf"}`: got.values[`lockfs_grants_total{class="named"}`],
		"lockfs_healthy":                                               1,
		"lockfs_worker_restarts_total":                                 0,
		"lockfs_events_missed_total":                                   0,
	} {
		require.Equal(t, want, got.values[name], name)
	}
	require.Positive(t, got.values[`lockfs_oldest_lock_seconds{class="flock"}`])
	require.Positive(t, got.values["lockfs_journal_records_total"])

	t.Run("names", func(t *testing.T) { requireNames(t, got) })
	t.Run("promtool", func(t *testing.T) {
		p := newProgram(t, time.Minute, promtool(t), "check", "metrics")
		p.Stdin = strings.NewReader(got.text)
		r := p.run(t)
		require.Zero(t, r.code, r.err)
		require.Empty(t, r.err)
	})
	t.Run("loopback", func(t *testing.T) {
		n, err := strconv.Atoi(port)
		require.NoError(t, err)
		for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			for _, line := range strings.Split(readFile(t, table), "\n") {
				if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) {
					require.Equal(t, fmt.Sprintf("0100007F:%04X", n), f[1], "listens on loopback only")
				}
			}
		}
	})

	before := m.stats(t)
	m.killWorker()
	for _, class := range lockClasses {
		before["refused_"+class] = "0" // these count anew
	}
	requireCounts(t, m, port, before)
	require.EqualValues(t, 1, mustScrape(t, port).values["lockfs_worker_restarts_total"])
}

var lockClasses = []string{"named", "record", "flock"}

// playForMetrics has something of everything happen.
func playForMetrics(t *testing.T, m *mount) {
	s := newScene(t, m)
	s.play(`
		a open f
		b open f
		c open f
		a open g
		b open g
		a flock g ex
		b flock g ex+nb = EAGAIN
		a setlk f w 0 1
		b setlk f w 1 1
		a setlkw f w 1 1 ...
		b setlkw f w 0 1 = EDEADLK`)
	require.NoError(t, unix.Mkdir(m.path("tlock/held+1h"), 0o755))
	require.Equal(t, unix.EAGAIN.Error(), errnoText(os.ReadFile(m.path("hold/held,wait=0"))))
	require.NoError(t, unix.Mkdir(m.path("tlock/short+0.1"), 0o755))
	m.awaitFree(t, "short")
	require.Equal(t, unix.ETIMEDOUT.Error(), errnoText(os.ReadFile(m.path("hold/held,wait=0.1"))))
	mustSh(t, `setpriv --reuid 12345 --clear-groups mkdir "$1"/tlock/theirs+1h && rmdir "$1"/tlock/theirs`, m.dir)
}

func errnoText(_ []byte, err error) string {
	if err == nil {
		return "ok"
	}
	return err.(*os.PathError).Err.Error()
}

// requireCounts waits until the metrics are what stats say, and all grants and ends are in the histograms.
func requireCounts(t *testing.T, m *mount, port string, stats map[string]string) {
	t.Helper()
	names := map[string]string{
		"held": "lockfs_locks_held", "waiting": "lockfs_locks_waiting", "granted": "lockfs_grants_total",
		"released": "lockfs_releases_total", "refused": "lockfs_refusals_total", "waited": "lockfs_waits_total",
		"canceled": "lockfs_waits_canceled_total",
	}
	var wrong []string
	var restarts float64
	same := func() bool {
		wrong = nil
		got, err := scrape(port)
		if err != nil {
			wrong = append(wrong, err.Error())
			return false
		}
		restarts = got.values["lockfs_worker_restarts_total"]
		for _, class := range lockClasses {
			for stat, name := range names {
				want := stats[stat+"_"+class]
				if have := got.values[fmt.Sprintf("%s{class=%q}", name, class)]; strconv.FormatFloat(have, 'f', -1, 64) != want {
					wrong = append(wrong, fmt.Sprintf("%s of %s is %v, want %s", name, class, have, want))
				}
			}
			waited := got.values[fmt.Sprintf("lockfs_wait_duration_seconds_count{class=%q}", class)]
			if want, _ := strconv.ParseFloat(stats["granted_"+class], 64); restarts == 0 && waited != want {
				wrong = append(wrong, fmt.Sprintf("%v waits of %s in the histogram, want %v", waited, class, want))
			}
		}
		return len(wrong) == 0
	}
	for deadline := time.Now().Add(waitLimit); !same(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v:\n%s", waitLimit, strings.Join(wrong, "\n"))
		}
	}
}

var metricName = regexp.MustCompile(`\b(?:lockfs|process|go)_[a-z_]+`)

// requireNames compares the names that are exported with those that are used.
func requireNames(t *testing.T, got metrics) {
	var dashboard struct {
		Panels     []struct{ Targets []struct{ Expr string } }
		Templating struct{ List []struct{ Name, Type string } }
	}
	require.NoError(t, json.Unmarshal([]byte(readFile(t, "../packaging/grafana/lockfs.json")), &dashboard))
	require.Equal(t, "datasource", dashboard.Templating.List[0].Type)
	require.Equal(t, "datasource", dashboard.Templating.List[0].Name)
	require.NotContains(t, strings.ReplaceAll(readFile(t, "../packaging/grafana/lockfs.json"), `"uid": "${datasource}"`, ""), `"uid": "$`)
	var exprs strings.Builder
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			fmt.Fprintln(&exprs, target.Expr)
		}
	}
	shown := usedNames(exprs.String())
	var own []string
	for _, name := range got.names {
		if strings.HasPrefix(name, "lockfs_") {
			own = append(own, name)
		}
	}
	require.Subset(t, got.names, shown, "the dashboard shows what is exported")
	require.Subset(t, shown, own, "and all of it")

	alerts := usedNames(readFile(t, "../packaging/prometheus/lockfs.rules.yml"))
	require.NotEmpty(t, alerts)
	require.Subset(t, got.names, alerts, "the alerts use what is exported")
	manual := usedNames(readFile(t, "../docs/metrics.md"))
	require.Subset(t, got.names, manual, "the manual names what is exported")
	require.Subset(t, manual, own, "and all of it")
}

// usedNames are the names of metrics in a text; histograms are named without what their series add.
func usedNames(text string) []string {
	var names []string
	for _, name := range metricName.FindAllString(text, -1) {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, suffix)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestAlerts: the alerts fire when they should, and then only.
func TestAlerts(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "lockfs.rules.yml"}, {"test", "rules", "lockfs.rules.test.yml"}} {
		p := newProgram(t, time.Minute, promtool(t), args...)
		p.Dir = "../packaging/prometheus"
		r := p.run(t)
		require.Zero(t, r.code, "%v\n%s%s", args, r.out, r.err)
	}
}

// TestMetricsPortTaken: at a mount that is an error, later it is none.
func TestMetricsPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	addr := taken.Addr().String()
	base := tempDir(t)
	dir := filepath.Join(base, "mnt")
	require.NoError(t, os.Mkdir(dir, 0o755))
	r := lockfs(t, "mount", "--state", filepath.Join(base, "state"), "--http", addr, dir)
	require.Equal(t, 3, r.code)
	require.Equal(t, "lockfs: --http "+addr+": bind: address already in use\n", r.err)
	_, left := mountedAt(dir)
	require.False(t, left, "left mounted")
	r = lockfs(t, "mount", "--state", filepath.Join(base, "state"), "--http", "0", dir)
	require.Equal(t, 2, r.code)
	require.Contains(t, r.err, `--http "0"`)

	require.NoError(t, taken.Close())
	port := freePort(t)
	m := newCrashMount(t, "--http", port)
	require.NoError(t, unix.Mkdir(m.path("tlock/held"), 0o755))
	thief := stealPort(t, m, port)
	m.awaitLog("metrics are not served; trying again.*127.0.0.1:" + port + ".*address already in use")
	require.Contains(t, entries(t, m.path("tlock")), "held", "the mount goes on")
	require.NoError(t, unix.Mkdir(m.path("tlock/another"), 0o755))
	require.NoError(t, thief.Close())
	eventually(t, waitLimit, "metrics are there again", func() bool {
		got, err := scrape(port)
		return err == nil && got.values["lockfs_worker_restarts_total"] > 0
	})
	m.awaitLog("metrics are served again")
}

// stealPort takes the port of a mount's worker in the moment in which there is none. The next worker may be faster, but
// not each time.
func stealPort(t *testing.T, m *mount, port string) net.Listener {
	t.Helper()
	for range 10 {
		old := m.strikeWorker()
		for begin := time.Now(); time.Since(begin) < time.Second; {
			if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
				t.Cleanup(func() { l.Close() })
				m.awaitWorker(old)
				return l
			}
		}
		m.awaitWorker(old)
	}
	t.Fatal("ten workers in a row had their port at once")
	return nil
}

// TestHealthz says that the disk is full, and when it no longer is.
func TestHealthz(t *testing.T) {
	disk, port := smallDisk(t, "3m"), freePort(t)
	binary, err := testedBinary()
	require.NoError(t, err)
	m := mountAt(t, binary, filepath.Join(tempDir(t), "mnt"), filepath.Join(disk, "state"), "--files", tempDir(t), "--http", port)
	code, text := get(t, port, "healthz")
	require.Equal(t, 200, code, text)
	require.Equal(t, "ok\n", text)

	fill(t, filepath.Join(disk, "filler"))
	taken := takeUntilFull(t, m)
	t.Logf("%d locks found room", taken)
	code, text = get(t, port, "healthz")
	require.Equal(t, 503, code, text)
	require.Regexp(t, `\Ano new lock can be recorded: .*no space.*\n\z`, text)
	require.Zero(t, mustScrape(t, port).values["lockfs_healthy"])

	require.NoError(t, os.Remove(filepath.Join(disk, "filler")))
	code, text = get(t, port, "healthz")
	require.Equal(t, 200, code, text)
	require.NoError(t, unix.Mkdir(m.path("tlock/again"), 0o755))
	require.EqualValues(t, 1, mustScrape(t, port).values["lockfs_healthy"])
}

// freePort is one of loopback's that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

var webClient = http.Client{Timeout: waitLimit}

func get(t testing.TB, port, path string) (code int, text string) {
	t.Helper()
	r, err := webClient.Get("http://127.0.0.1:" + port + "/" + path)
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, string(b)
}

// metrics are what /metrics answered: values by name and labels.
type metrics struct {
	text   string
	names  []string
	values map[string]float64
}

func mustScrape(t testing.TB, port string) metrics {
	t.Helper()
	got, err := scrape(port)
	require.NoError(t, err)
	return got
}

func scrape(port string) (metrics, error) {
	got := metrics{values: map[string]float64{}}
	r, err := webClient.Get("http://127.0.0.1:" + port + "/metrics")
	if err != nil {
		return got, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return got, fmt.Errorf("%s: %w", r.Status, err)
	}
	got.text = string(b)
	for lines := bufio.NewScanner(strings.NewReader(got.text)); lines.Scan(); {
		line := lines.Text()
		if f := strings.Fields(line); f[0] == "#" {
			if f[1] == "TYPE" {
				got.names = append(got.names, f[2])
			}
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if got.values[line[:i]], err = strconv.ParseFloat(line[i+1:], 64); err != nil {
			return got, err
		}
	}
	return got, nil
}

// promtool is where make deps has put it, or the system has it.
func promtool(t testing.TB) string {
	t.Helper()
	if path, err := exec.LookPath("promtool"); err == nil {
		return path
	}
	path, err := filepath.Abs("../bin/promtool")
	require.NoError(t, err)
	require.FileExists(t, path, "make deps gets it")
	return path
}
