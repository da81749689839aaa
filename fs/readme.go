package fs

import _ "embed"

//go:embed tree.txt
var treeText []byte

func renderReadme(*Server, node, caller) ([]byte, error) { return treeText, nil }
