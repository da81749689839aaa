package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSecurityNamesTestsThatExist: what SECURITY.md says is tested, is.
func TestSecurityNamesTestsThatExist(t *testing.T) {
	var code []byte
	for _, pattern := range []string{"*_test.go", "../fs/*_test.go", "../fs/*/*_test.go", "../lockengine/*_test.go", "../cmd/lockfs/*_test.go"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			code = append(code, text...)
		}
	}
	names := regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(readFile(t, "../SECURITY.md"), -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.True(t, bytes.Contains(code, []byte("\nfunc "+name[1]+"(t *testing.T)")), "SECURITY.md names %s", name[1])
	}
}
