package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestManual: lockfs(1) has every command and every flag, and no flag that there is not.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../packaging/man/lockfs.1")
	require.NoError(t, err)
	manual := string(page)
	known := map[string]bool{}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	for _, command := range root.Commands() {
		assert.Regexp(t, `(?m)^\.(It Nm )?Cm (\w+ \| )*`+command.Name()+`\b`, manual, "the command %s", command.Name())
		if command.Name() != "completion" {
			checkFlags(t, command, manual, known)
		}
	}
	for _, m := range regexp.MustCompile(`Fl -(\w[\w-]*)|, -([\w-]+)`).FindAllStringSubmatch(manual, -1) {
		assert.True(t, known[m[1]+m[2]], "no command has the flag %q", m[0])
	}
}

func checkFlags(t *testing.T, command *cobra.Command, manual string, known map[string]bool) {
	command.Flags().VisitAll(func(f *pflag.Flag) {
		known[f.Name] = true
		if f.Hidden {
			return
		}
		assert.Regexp(t, `Fl (\w , )?-`+regexp.QuoteMeta(f.Name)+`\b`, manual, "%s --%s", command.Name(), f.Name)
		if f.Shorthand != "" {
			assert.Contains(t, manual, "Fl "+f.Shorthand+" , -"+f.Name, "%s -%s", command.Name(), f.Shorthand)
		}
	})
}

// TestManualOfMount: mount.lockfs(8) has every option of ours.
func TestManualOfMount(t *testing.T) {
	page, err := os.ReadFile("../../packaging/man/mount.lockfs.8")
	require.NoError(t, err)
	f := defaultMountFlags()
	for name := range f.ownOptions() {
		assert.Contains(t, string(page), "\n.It Cm "+name+" Ns = Ns")
	}
	for _, option := range strings.Fields("allow_other ro noexec defaults nofail user _netdev") {
		assert.Regexp(t, `(?m)^\.It Cm .*\b`+option+`\b`, string(page))
	}
}
