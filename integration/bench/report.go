package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is where and when something was measured.
type machine struct {
	cpu, kernel, goVersion string
	commit                 string // of lockfs
	cores                  int
	date                   time.Time
}

func thisMachine(ctx context.Context) machine {
	m := machine{cpu: "unknown CPU", goVersion: runtime.Version(), date: time.Now().UTC()}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		switch key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) {
		case "processor":
			m.cores++
		case "model name":
			m.cpu = strings.TrimSpace(value)
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.kernel = unix.ByteSliceToString(u.Release[:])
	}
	commit, _ := command(ctx, "git", "describe", "--tags", "--always", "--dirty") // not in a tarball
	m.commit = strings.TrimSpace(commit)
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, %s", m.cpu, m.cores, m.kernel, m.goVersion, m.date.Format("2006-01-02"))
}

// write writes the files of a whole run.
func write(dir string, host machine, all []measurement) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "table.md"), []byte(table(host, all)), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.txt"), []byte(benchLines(host, all)), 0o644),
		os.WriteFile(filepath.Join(dir, "chart.svg"), []byte(chart(host, all)), 0o644),
	)
}

// cost is the median of a peer's rounds, in nanoseconds; false: it has no such
// row.
func (m measurement) cost(peer string) (float64, bool) {
	var costs []float64
	for _, s := range m.samples[peer] {
		costs = append(costs, s.perOp())
	}
	return median(costs)
}

// ratio is the median of the ratios of two peers, round by round.
func (m measurement) ratio(a, b string) (float64, bool) {
	var ratios []float64
	for i := range min(len(m.samples[a]), len(m.samples[b])) {
		ratios = append(ratios, m.samples[a][i].perOp()/m.samples[b][i].perOp())
	}
	return median(ratios)
}

func median(all []float64) (float64, bool) {
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return all[len(all)/2], true
}

// table is all measurements in Markdown.
func table(host machine, all []measurement) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What locks cost\n\nMicroseconds for one of each, medians of rounds in turns.\n%s; lockfs %s.\n", host, host.commit)
	var at string
	for _, m := range all {
		if m.series.name != at {
			at = m.series.name
			tableHead(&b, m.series)
		}
		tableRow(&b, m)
	}
	if from := crossing(all); from != "" {
		fmt.Fprintf(&b, "\n%s\n", from)
	}
	return b.String()
}

var tableRatios = []struct{ label, a, b string }{
	{"lockfs / no-op", lockfs, noop},
	{"lockfs / libfuse", lockfs, libfuse},
	{"journal / none", lockfs, noJournal},
}

func tableHead(b *strings.Builder, s series) {
	fmt.Fprintf(b, "\n## %s\n\n| |", s.title)
	for _, p := range peers {
		fmt.Fprintf(b, " %s |", p.label)
	}
	for _, r := range tableRatios {
		fmt.Fprintf(b, " %s |", r.label)
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---:|", len(peers)+len(tableRatios)))
}

func tableRow(b *strings.Builder, m measurement) {
	fmt.Fprintf(b, "| %s |", m.row.label)
	for _, p := range peers {
		b.WriteString(cell(m.cost(p.name))(micro))
	}
	for _, r := range tableRatios {
		b.WriteString(cell(m.ratio(r.a, r.b))(twoDecimals))
	}
	b.WriteByte('\n')
}

// cell writes a value, or nothing where there is none.
func cell(v float64, ok bool) func(func(float64) string) string {
	return func(text func(float64) string) string {
		if !ok {
			return " |"
		}
		return " " + text(v) + " |"
	}
}

func twoDecimals(v float64) string { return fmt.Sprintf("%.2f", v) }

// micro is nanoseconds as microseconds, with three digits.
func micro(ns float64) string {
	us := ns / 1e3
	digits := 2 - int(math.Floor(math.Log10(max(us, 0.01))))
	return fmt.Sprintf("%.*f", max(digits, 0), us)
}

// crossing says from how many ranges on lockfs is faster than the kernel.
func crossing(all []measurement) string {
	from, most := -1, 0
	for _, m := range all {
		if m.series.name != "one" || m.row.client != "ranges" {
			continue
		}
		r, ok := m.ratio(lockfs, tmpfs)
		if !ok {
			return ""
		}
		most = max(most, m.row.number)
		if r >= 1 {
			from = -1
		} else if from < 0 {
			from = m.row.number
		}
	}
	switch {
	case most == 0:
		return ""
	case from < 0:
		return fmt.Sprintf("With up to %d ranges held on the file, tmpfs is faster than lockfs.", most)
	}
	return fmt.Sprintf("On one CPU, lockfs is faster than tmpfs when %d ranges or more are held on the file.", from)
}

// benchLines is every round in Go's benchmark format, for benchstat. It would
// not compare runs whose keys differ, so when and what is a comment.
func benchLines(host machine, all []measurement) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s; lockfs %s\ngoos: linux\ngoarch: %s\ncpu: %s\nkernel: %s\n", host, host.commit, runtime.GOARCH, host.cpu, host.kernel)
	for _, m := range all {
		for _, p := range peers {
			for _, s := range m.samples[p.name] {
				fmt.Fprintf(&b, "BenchmarkLocks/row=%s/cpus=%s/peer=%s %d %.0f ns/op\n", m.row.name, m.series.name, p.name, s.n, s.perOp())
			}
		}
	}
	return b.String()
}
