package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A fence is a fenced block of a document. Blocks marked sh and perl are run; text right after one of these is what
// that says, with `...` for what varies; console is for what cannot be run here (see notRun).
type fence struct {
	recipe
	info  string
	shows string // the text that follows
}

var fenceLines = regexp.MustCompile("(?ms)^```(.*?)\n(.*?)^```\n")

// fences reads the blocks of a document.
func fences(t *testing.T, path string) []fence {
	t.Helper()
	text := readFile(t, path)
	var found []fence
	end := 0
	all := fenceLines.FindAllStringSubmatchIndex(text, -1)
	require.Equal(t, strings.Count(text, "```"), 2*len(all), "%s: each block begins and ends at the margin", path)
	for _, at := range all {
		block := fence{info: text[at[2]:at[3]]}
		block.title = fmt.Sprintf("line %d", 1+strings.Count(text[:at[0]], "\n"))
		block.script = text[at[4]:at[5]]
		follows := strings.TrimSpace(text[end:at[0]]) == ""
		end = at[1]
		if last := len(found) - 1; block.info == "text" && follows && last >= 0 && interpreters[found[last].info] != nil {
			found[last].shows = block.script
			continue
		}
		found = append(found, block)
	}
	return found
}

// ownTests have the pages that need more than a mount, and are typed by tests of their own.
var ownTests = []string{"../docs/containers.md", "../docs/metrics.md"}

// documents are the pages of the manual.
func documents(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	pages = slices.DeleteFunc(pages, func(page string) bool { return slices.Contains(ownTests, page) })
	require.GreaterOrEqual(t, len(pages), 6)
	return append(pages, "../README.md")
}

var interpreters = map[string][]string{"sh": {"dash"}, "perl": {"perl", "-Mstrict", "-w"}}

// notRun are the first lines of the blocks that no test runs, and why.
var notRun = map[string]string{
	"$ sudo lockfs mount --background --state /var/lib/lockfs/locks /locks": "it is the reader's machine that this mounts on",
	"$ perl -MSys::Tlock -e '...'":                                          "the module is not in Debian; tlockdialect_test.go does what it does",
	"$ perl -MLock::Socket -e '...'":                                        "the module is not in Debian",
	"$ cat /etc/systemd/system/lockfs.service":                              "there is no systemd where the tests run",
}

// TestDocuments types each page of the manual, block by block, on a mount of its own. README.md is typed by TestCookbook.
func TestDocuments(t *testing.T) {
	binary, err := plainBinary() // the race detector would double the time
	require.NoError(t, err)
	command := filepath.Join(tempDir(t), "lockfs")
	require.NoError(t, os.Symlink(binary, command))
	for _, path := range documents(t) {
		if filepath.Base(path) == "README.md" {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			work := workPlace(t)
			base := tempDir(t)
			m := mountAt(t, command, filepath.Join(base, "mnt"), filepath.Join(base, "state"))
			for _, block := range fences(t, path) {
				if interpreters[block.info] != nil && !t.Run(block.title, func(t *testing.T) { block.check(t, m, work) }) {
					return // what follows builds on it
				}
			}
		})
	}
}

// check runs a block, and compares what it says.
func (f fence) check(t *testing.T, m *mount, work string) {
	p := f.at(m, work).program(t, interpreters[f.info]...)
	p.Env = append(p.Env, "PATH="+filepath.Dir(m.binary)+":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "LOCKFS_DIR="+m.dir)
	p.Dir = work
	p.Stderr = &p.out
	t.Cleanup(func() {
		if p.Process != nil {
			syscall.Kill(-p.Process.Pid, syscall.SIGKILL) // what a block that failed left behind
		}
	})
	r := p.run(t)
	said := strings.NewReplacer(m.dir, "/locks", work, "/demo").Replace(r.out)
	require.Zero(t, r.code, "%s\n%s", f.script, said)
	if f.shows != "" {
		require.Regexp(t, pattern(f.shows), blanks.ReplaceAllString(said, " "), f.script)
	}
}

// TestBlocksThatNobodyRuns are those for which there is a reason.
func TestBlocksThatNobodyRuns(t *testing.T) {
	var blocks []string // the first line of each
	for _, path := range documents(t) {
		for _, block := range fences(t, path) {
			switch {
			case block.info == "console":
				first, _, _ := strings.Cut(block.script, "\n")
				blocks = append(blocks, first)
			case block.info != "text":
				assert.Contains(t, interpreters, block.info, "%s, %s: blocks are sh, perl, text or console", path, block.title)
			}
		}
	}
	readme := readFile(t, "../README.md")
	_, cookbook, _ := strings.Cut(readme, "\n## Cookbook\n")
	cookbook, _, _ = strings.Cut(cookbook, "\n## ")
	require.Equal(t, strings.Count(readme, "```"), strings.Count(cookbook, "```"), "what README.md has to type is in its cookbook")
	slices.Sort(blocks)
	require.Equal(t, slices.Sorted(maps.Keys(notRun)), slices.Compact(blocks))
}

var (
	mountPath = regexp.MustCompile(`(^|[\s"'=<>(])/locks\b`)
	blanks    = regexp.MustCompile(`[ \t]+`)
)

// at is a block with a mount in place of /locks, and a directory in place of /demo. Its shell ends with the first
// command that fails.
func (f fence) at(m *mount, work string) recipe {
	script := mountPath.ReplaceAllString(f.script, "${1}"+m.dir)
	script = strings.ReplaceAll(script, "/demo", work)
	if f.info == "sh" {
		script = "set -e\n" + script
	}
	return recipe{f.title, script}
}

// pattern is what a text block stands for: `...` is any part of a line, or, alone on a line, any lines.
func pattern(shown string) string {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for line := range strings.Lines(shown) {
		if line == "...\n" {
			b.WriteString(`(?:[^\n]*\n)*`)
			continue
		}
		parts := strings.Split(blanks.ReplaceAllString(line, " "), "...")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		b.WriteString(strings.Join(parts, `[^\n]*`))
	}
	return b.String() + `\z`
}

// workPlace is a directory for the mounts that a page makes, which are taken away with it.
func workPlace(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	t.Cleanup(func() {
		for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
			if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir+"/") {
				entry, _ := mountedAt(fields[4])
				t.Errorf("left mounted: %s", entry.point)
				(&mount{minor: entry.minor}).abort()
				unix.Unmount(entry.point, unix.MNT_DETACH)
			}
		}
	})
	return dir
}

// TestDocumentsAreListed in README.md, and link only to what is there.
func TestDocumentsAreListed(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	listed := map[string]bool{}
	for _, path := range documents(t) {
		for _, found := range link.FindAllStringSubmatch(readFile(t, path), -1) {
			target := filepath.Join(filepath.Dir(path), found[1])
			_, err := os.Stat(target)
			assert.NoError(t, err, "linked to in %s", path)
			if filepath.Base(path) == "README.md" {
				listed[target] = true
			}
		}
	}
	for _, path := range documents(t) {
		assert.True(t, listed[path] || filepath.Base(path) == "README.md", "README.md does not list %s", path)
	}
}

// A treeRow is a line of the tables of docs/tree.md.
type treeRow struct {
	path string
	mode string
	kind string // listed, unlisted
}

var treeLine = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\d{4}|own) \\| (dir|file), (listed|unlisted) \\|")

func treeRows(t *testing.T) map[string]treeRow {
	t.Helper()
	rows := map[string]treeRow{}
	for _, found := range treeLine.FindAllStringSubmatch(readFile(t, "../docs/tree.md"), -1) {
		path := strings.TrimSuffix(found[1], "/")
		require.NotContains(t, rows, path)
		require.Equal(t, found[3] == "dir", strings.HasSuffix(found[1], "/"), "%s: a directory ends with a slash", path)
		rows[path] = treeRow{path, found[2], found[4]}
	}
	require.NotEmpty(t, rows)
	return rows
}

// TestTreeDocument: docs/tree.md has every path that the tree has, with its mode, and no other.
func TestTreeDocument(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/job+5m"), 0o755))
	require.NoError(t, os.WriteFile(m.path("files/data"), nil, 0o600))
	data, err := os.Open(m.path("files/data"))
	require.NoError(t, err)
	defer data.Close()
	require.NoError(t, unix.Flock(int(data.Fd()), unix.LOCK_EX))
	names := strings.NewReplacer("NAME", "job", "PATH", "data", "PID", strconv.Itoa(os.Getpid()),
		"TOKEN", readValue(t, m.path("tlock/job/token")))

	rows := treeRows(t)
	listed := map[string]bool{}
	require.NoError(t, filepath.WalkDir(m.dir, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(m.dir, path)
		listed[rel] = true
		return err
	}))
	delete(listed, ".")
	for _, row := range rows {
		path := names.Replace(row.path)
		st := statOf(t, m.path(path))
		if row.mode != "own" {
			assert.Equal(t, row.mode, fmt.Sprintf("%04o", st.Mode&0o7777), path)
		}
		assert.Equal(t, row.kind == "listed", listed[path], "%s is %s", path, row.kind)
		delete(listed, path)
	}
	for path := range listed {
		t.Errorf("%s is not in docs/tree.md", path)
	}
}

// TestTreeDocumentAgreesWithREADME: what MOUNT/README speaks of is in docs/tree.md, and the other way round.
func TestTreeDocumentAgreesWithREADME(t *testing.T) {
	m := newMount(t)
	readme := readFile(t, m.path("README"))
	rows := treeRows(t)
	short := map[string]bool{"README": true}
	spoken := regexp.MustCompile(`\b(?:tlock|take|hold|view|files)(?:/[\w.@$+,=]*)*`)
	variable := strings.NewReplacer("@$token", "@TOKEN", "my.lock", "PATH")
	for _, path := range spoken.FindAllString(readme, -1) {
		path = variable.Replace(strings.TrimRight(path, "/.,"))
		path, _, _ = strings.Cut(path, "+")
		path, _, _ = strings.Cut(path, ",")
		path = regexp.MustCompile(`^tlock/x\b`).ReplaceAllString(path, "tlock/NAME")
		short[path] = true
		if rest, found := strings.CutPrefix(path, "tlock/NAME@TOKEN/"); found {
			path = "tlock/NAME/" + rest
		}
		assert.Contains(t, rows, path, "of MOUNT/README")
	}
	_, also, _ := strings.Cut(readme, "also: ")
	also, _, _ = strings.Cut(also, "cat ")
	for _, name := range strings.Split(also, ",") {
		path := "tlock/NAME/" + strings.TrimSpace(name)
		short[path] = true
		assert.Contains(t, rows, path, "of MOUNT/README")
	}
	notShort := map[string]string{
		"tlock/NAME/d":    "only Sys::Tlock needs it",
		"view/files/PATH": "`ls view/files` shows it",
		"view/pid/PID":    "`ls view/pid` shows it",
	}
	for path := range rows {
		assert.True(t, short[path] || notShort[path] != "", "MOUNT/README says nothing of %s", path)
	}
}

// TestLogLinesAreDocumented: docs/operating.md has each message of the log.
func TestLogLinesAreDocumented(t *testing.T) {
	document := strings.Join(strings.Fields(readFile(t, "../docs/operating.md")), " ")
	messages := logMessages(t)
	require.Greater(t, len(messages), 30, "found in the sources")
	for message, where := range messages {
		known := strings.Contains(document, strings.Join(strings.Fields(message), " "))
		assert.True(t, known, "%q, logged at %s, is not in docs/operating.md", message, where)
	}
}

// logMessages finds what the sources log, at level Info or above, or print for a person who runs the daemon.
func logMessages(t *testing.T) map[string]string {
	t.Helper()
	messages := map[string]string{}
	files := token.NewFileSet()
	for _, root := range []string{"../cmd", "../fs", "../lockengine"} {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				filepath.Base(filepath.Dir(path)) == "enginetest" {
				return err
			}
			file, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				for _, message := range messagesOf(n) {
					messages[message] = files.Position(n.Pos()).String()
				}
				return true
			})
			return nil
		}))
	}
	return messages
}

// messagesOf returns the texts of a call of a slog.Logger, of a notice, or of a print to standard error: the latter in
// parts, between what is filled in.
func messagesOf(n ast.Node) []string {
	switch n := n.(type) {
	case *ast.KeyValueExpr:
		if key, ok := n.Key.(*ast.Ident); ok && key.Name == "msg" {
			return []string{literal(n.Value)}
		}
	case *ast.CallExpr:
		called, ok := n.Fun.(*ast.SelectorExpr)
		if !ok {
			return nil
		}
		message := map[string]int{"Info": 0, "Warn": 0, "Error": 0, "Log": 2, "Fprintf": 1}
		i, ok := message[called.Sel.Name]
		if !ok || len(n.Args) <= i {
			return nil
		}
		text := literal(n.Args[i])
		if called.Sel.Name != "Fprintf" {
			return nonEmpty(text)
		}
		if to, ok := n.Args[0].(*ast.SelectorExpr); ok && to.Sel.Name == "Stderr" {
			return nonEmpty(regexp.MustCompile(`lockfs: |\n|%[a-z]`).Split(text, -1)...)
		}
	}
	return nil
}

func nonEmpty(texts ...string) []string {
	return slices.DeleteFunc(texts, func(s string) bool { return len(strings.TrimSpace(s)) < 3 })
}

// literal is the constant part of a string expression.
func literal(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return literal(e.X) + literal(e.Y)
	}
	return ""
}

// TestPattern: a text block that shows something else than what is said is found.
func TestPattern(t *testing.T) {
	for _, tc := range []struct {
		shown, said string
		fits        bool
	}{
		{"a b\n", "a b\n", true},
		{"a    b\n", "a b\n", true},
		{"a b\n", "a c\n", false},
		{"a b\n", "a b\nc\n", false},
		{"a ... c\n", "a b b c\n", true},
		{"a ... c\n", "a b\n c\n", false},
		{"a\n...\nz\n", "a\nb\nc\nz\n", true},
		{"a\n...\nz\n", "a\nz\n", true},
		{"a\n...\nz\n", "a\nb\n", false},
		{"(a|b).\n", "(a|b).\n", true},
		{"(a|b).\n", "ac\n", false},
	} {
		assert.Equal(t, tc.fits, regexp.MustCompile(pattern(tc.shown)).MatchString(tc.said), "%q of %q", tc.shown, tc.said)
	}
}

var errorLine = regexp.MustCompile("(?m)^\\| `(E[A-Z]+)` \\| ([^|]+) \\| `([^`]+)` \\|")

// TestErrorsOfTreeDocument: each example of the table of errors fails as the table says.
func TestErrorsOfTreeDocument(t *testing.T) {
	m := newMount(t)
	require.NoError(t, unix.Mkdir(m.path("tlock/job+5m"), 0o755))
	require.Zero(t, asNewUser(t, m, "mkdir tlock/mine+5m").code)
	lines := errorLine.FindAllStringSubmatch(readFile(t, "../docs/tree.md"), -1)
	require.Greater(t, len(lines), 15)
	for _, line := range lines {
		errno, words, command := line[1], line[2], strings.ReplaceAll(line[3], `\|`, "|")
		r := asNewUser(t, m, command)
		assert.Contains(t, r.err, words, command)
		assert.Equal(t, errno, errnoOfWords(words), command)
		assert.ElementsMatch(t, []string{"job", "mine"}, entries(t, m.path("tlock")), "%s changes nothing", command)
	}
}

// errnoOfWords is the errno that is so in words, as programs print it.
func errnoOfWords(words string) string {
	for errno := syscall.Errno(1); errno < 200; errno++ {
		if strings.EqualFold(errno.Error(), words) {
			return unix.ErrnoName(errno)
		}
	}
	return words
}
