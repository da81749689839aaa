package fs

import (
	_ "embed"
	"io"
)

//go:embed tree.txt
var treeText []byte

func renderReadme(_ *Server, _ node, _ caller, w io.Writer) error {
	_, err := w.Write(treeText)
	return err
}
