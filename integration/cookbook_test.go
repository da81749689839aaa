package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A recipe is a block of shell of README.md's cookbook.
type recipe struct{ title, script string }

var recipeBlock = regexp.MustCompile("(?ms)^\\*\\*(.+?)\\*\\*(?:.*?)^```sh\n(.*?)^```$")

// cookbook reads the recipes, with the mount in place of /locks.
func cookbook(t *testing.T, m *mount) []recipe {
	t.Helper()
	_, rest, found := strings.Cut(readFile(t, "../README.md"), "\n## Cookbook\n")
	require.True(t, found, "README.md has no cookbook")
	section, _, _ := strings.Cut(rest, "\n## ")
	var recipes []recipe
	for _, match := range recipeBlock.FindAllStringSubmatch(section, -1) {
		recipes = append(recipes, recipe{match[1], strings.ReplaceAll(match[2], "/locks/", m.dir+"/")})
	}
	require.Len(t, recipes, strings.Count(section, "```sh\n"), "each block has a title in bold above it")
	require.GreaterOrEqual(t, len(recipes), 10)
	return recipes
}

// recipeWith finds the recipe whose script has this text.
func recipeWith(t *testing.T, m *mount, text string) recipe {
	t.Helper()
	for _, r := range cookbook(t, m) {
		if strings.Contains(r.script, text) {
			return r
		}
	}
	t.Fatalf("no recipe of the cookbook has %q", text)
	return recipe{}
}

// shells are those that the cookbook says it is for.
var shells = map[string][]string{"sh": {"dash"}, "busybox": {"busybox", "sh"}}

// runIn runs a recipe as a script of a shell.
func (r recipe) runIn(t *testing.T, shell string) result {
	t.Helper()
	return r.program(t, shells[shell]...).run(t)
}

// program prepares to run a recipe as a script of an interpreter.
func (r recipe) program(t *testing.T, interpreter ...string) *program {
	t.Helper()
	script := filepath.Join(tempDir(t), "recipe")
	require.NoError(t, os.WriteFile(script, []byte(r.script), 0o644))
	command := slices.Concat(interpreter, []string{script})
	return newProgram(t, time.Minute, command[0], command[1:]...)
}

// TestCookbook runs every recipe as it stands.
func TestCookbook(t *testing.T) {
	m := newMount(t)
	recipes := cookbook(t, m)
	for shell := range shells {
		for _, r := range recipes {
			t.Run(shell+"/"+r.title, func(t *testing.T) {
				got := r.runIn(t, shell)
				require.Zero(t, got.code, "%s\n%s%s", r.script, got.out, got.err)
				assert.Empty(t, got.err)
				assert.NotEmpty(t, got.out, "a recipe shows that it worked")
				eventually(t, waitLimit, "nothing is left held", func() bool { return len(m.locks(t)) == 0 })
			})
		}
	}
}

// TestCookbookWhenHeld runs those recipes that are about it while somebody else has the lock.
func TestCookbookWhenHeld(t *testing.T) {
	m := newMount(t)
	for _, tc := range []struct {
		text, name string
		replace    []string // in the script, so that nobody has to wait for 30 seconds
		code       int
		lacks      string // from the output
		says       string // on standard error
	}{
		{text: "hold/nightly", name: "nightly", code: 0, lacks: "only one"},
		{text: "hold/report", name: "report", replace: []string{"wait=30", "wait=0.2"}, code: 0, lacks: "got it", says: "still busy"},
		{text: "take/sync", name: "sync", replace: []string{"wait=10", "wait=0.2"}, code: 1, lacks: "working"},
		{text: "tlock/once", name: "once", code: 0, lacks: "I am"},
		{text: "tlock/demo", name: "demo", code: 0, says: "File exists"}, // and releases it: carelessly
	} {
		for shell := range shells {
			t.Run(shell+"/"+tc.name, func(t *testing.T) {
				r := recipeWith(t, m, tc.text)
				r.script = strings.NewReplacer(tc.replace...).Replace(r.script)
				require.NoError(t, unix.Mkdir(m.path("tlock", tc.name), 0o755))
				got := r.runIn(t, shell)
				assert.Equal(t, tc.code, got.code, "%s%s", got.out, got.err)
				assert.Contains(t, got.err, tc.says)
				if tc.lacks != "" {
					assert.NotContains(t, got.out, tc.lacks)
					assert.NoError(t, unix.Rmdir(m.path("tlock", tc.name)), "the loser left it alone")
				}
				require.Empty(t, m.locks(t))
			})
		}
	}
}

// TestCookbookTellsABrokenMount: "held" and "broken" differ.
func TestCookbookTellsABrokenMount(t *testing.T) {
	m := newMount(t)
	r := recipeWith(t, m, "tlock/once")
	r.script = strings.ReplaceAll(r.script, m.dir, tempDir(t)) // where nothing is mounted
	for shell := range shells {
		require.Equal(t, 2, r.runIn(t, shell).code, shell)
	}
}

// readmeCommands are the commands of a section of MOUNT/README, as typed: what is indented by four, up to the comment.
func readmeCommands(t *testing.T, m *mount, section string) []string {
	t.Helper()
	_, rest, found := strings.Cut(readFile(t, m.path("README")), "\n"+section)
	require.True(t, found, "README has no section %q", section)
	var commands []string
	for i, line := range strings.Split(rest, "\n") {
		if i > 0 && regexp.MustCompile(`^[A-Z]`).MatchString(line) {
			break // the next heading
		}
		typed, found := strings.CutPrefix(line, "    ")
		if found && typed != "" && typed[0] != ' ' {
			command, _, _ := strings.Cut(typed, "   ")
			commands = append(commands, strings.ReplaceAll(strings.TrimSpace(command), "NAME", "job"))
		}
	}
	require.NotEmpty(t, commands)
	return commands
}

// asNewUser types a script at the mount's top as an ordinary user.
func asNewUser(t *testing.T, m *mount, script string) result {
	t.Helper()
	p := newProgram(t, 30*time.Second, "setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "sh", "-c", script)
	p.Dir = m.dir
	return p.run(t)
}

// TestReadmeHold follows "hold a lock while a script runs".
func TestReadmeHold(t *testing.T) {
	m := newMount(t)
	commands := readmeCommands(t, m, "HOLD A LOCK")
	require.Len(t, commands, 4)
	for _, command := range commands[:3] {
		r := asNewUser(t, m, command+"\ncat tlock/job/holder || exit 9\n"+commands[3]+"\ntest ! -d tlock/job")
		assert.Zero(t, r.code, "%s: %s", command, r.err)
		assert.Contains(t, r.out, "kind hold")
		assert.Empty(t, entries(t, m.path("tlock")), "nothing is left after %s", command)
	}
	require.NoError(t, unix.Mkdir(m.path("tlock/job"), 0o755))
	r := asNewUser(t, m, commands[1]+"\necho had it")
	assert.NotZero(t, r.code)
	assert.Empty(t, r.out, "%s: somebody has it", commands[1])
}

// TestReadmeTake follows "take a lock for a time", each command from the state that it is meant for.
func TestReadmeTake(t *testing.T) {
	m := newMount(t)
	var script strings.Builder
	commands := readmeCommands(t, m, "TAKE A LOCK")
	for _, command := range commands {
		if strings.HasPrefix(command, "mkdir") || strings.Contains(command, "take/") {
			script.WriteString("! test -d tlock/job || rmdir tlock/job\n")
		} else {
			script.WriteString("test -d tlock/job || { mkdir tlock/job; token=$(cat tlock/job/token); }\n")
		}
		script.WriteString(command + " || { echo failed: '" + command + "'; exit 1; }\n")
		if strings.HasPrefix(command, "rmdir") {
			script.WriteString("test ! -d tlock/job || { echo still there: '" + command + "'; exit 1; }\n")
		} else {
			script.WriteString("test -d tlock/job || { echo not held: '" + command + "'; exit 1; }\n")
		}
	}
	r := asNewUser(t, m, script.String())
	require.Zero(t, r.code, "%s%s", r.out, r.err)
	require.Empty(t, r.err)
	require.Empty(t, entries(t, m.path("tlock")))

	require.NoError(t, unix.Mkdir(m.path("tlock/job"), 0o755))
	r = asNewUser(t, m, "mkdir tlock/job")
	require.NotZero(t, r.code)
	require.Contains(t, r.err, "File exists")
}

// TestReadmeLook follows "look".
func TestReadmeLook(t *testing.T) {
	m := newMount(t)
	for _, command := range readmeCommands(t, m, "LOOK") {
		require.NoError(t, unix.Mkdir(m.path("tlock/job+1h"), 0o755))
		script := command
		switch {
		case strings.Contains(command, "/wait"): // so that there is an end to wait for
			require.NoError(t, os.WriteFile(m.path("tlock/job/timeout"), []byte("0.5\n"), 0))
		case strings.Contains(command, "view/events"):
			script = "timeout -s INT 0.5 " + command + "; test $? = 124" // Ctrl-C ends it
		}
		r := asNewUser(t, m, script)
		assert.Zero(t, r.code, "%s: %s", command, r.err)
		assert.Empty(t, r.err, command)
		if !strings.Contains(command, "events") && !strings.Contains(command, "view/files") {
			assert.NotEmpty(t, r.out, command)
		}
		unix.Rmdir(m.path("tlock/job"))
	}
	require.NoError(t, unix.Mkdir(m.path("tlock/job+1h"), 0o755))
	_, also, _ := strings.Cut(readFile(t, m.path("README")), "also: ")
	also, _, _ = strings.Cut(also, "cat ")
	for _, name := range strings.Split(also, ",") {
		_, err := os.ReadFile(m.path("tlock/job", strings.TrimSpace(name)))
		assert.NoError(t, err)
	}
}

// TestReadmeLockFiles follows "lock files".
func TestReadmeLockFiles(t *testing.T) {
	m := newMount(t)
	for _, command := range readmeCommands(t, m, "LOCK FILES") {
		r := asNewUser(t, m, strings.ReplaceAll(command, "COMMAND", "cat view/files/my.lock"))
		assert.Zero(t, r.code, "%s: %s", command, r.err)
		assert.Contains(t, r.out, "held")
	}
}

// TestReadmeMind: what README warns of is so, and what it recommends instead works.
func TestReadmeMind(t *testing.T) {
	m := newMount(t)
	readme := strings.Join(strings.Fields(readFile(t, m.path("README"))), " ")
	for _, advice := range []string{"`mkdir -p tlock/job` succeeds", "mkdir tlock/x || { [ -d tlock/x ] && exit 0; exit 2; }",
		"A trap 'rmdir tlock/x' EXIT", "With tlock/x@$token it cannot"} {
		require.Contains(t, strings.ReplaceAll(readme, "NAME", "job"), advice)
	}
	require.NoError(t, unix.Mkdir(m.path("tlock/x"), 0o777))
	require.NoError(t, unix.Mkdir(m.path("tlock/job"), 0o777))
	assert.Zero(t, asNewUser(t, m, "mkdir -p tlock/job").code)
	held := "mkdir tlock/x || { [ -d tlock/x ] && exit 0; exit 2; }; echo had it; exit 5"
	assert.Zero(t, asNewUser(t, m, held).code)
	assert.Equal(t, 2, sh(t, "cd "+tempDir(t)+"; "+held).code)

	// As the holder's own user, who may release: the careless trap does, the one with the token does not.
	careful := `cd "$1"; token=1; trap 'rmdir tlock/x@$token' EXIT; mkdir tlock/x || exit`
	assert.NotZero(t, sh(t, careful, m.dir).code)
	assert.DirExists(t, m.path("tlock/x"))
	careless := `cd "$1"; trap 'rmdir tlock/x' EXIT; mkdir tlock/x || exit`
	assert.NotZero(t, sh(t, careless, m.dir).code)
	assert.NoDirExists(t, m.path("tlock/x"))
}
