package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile is how large a config file can be, in bytes.
const maxFile = 1 << 20

// readLimit is how long a file is waited for: no deadline is known before it is read.
const readLimit = 5 * time.Second

// ErrFile is what is no config file: no YAML, too large, or not a mapping of keys.
var ErrFile = errors.New("no config file")

// Document is a YAML document whose nodes know their lines.
type Document struct {
	Name string     // of its file, for errors
	Root *yaml.Node // a mapping; nil if the document is empty
}

// Open reads a file of at most 1 MiB, for 5 s at most. It fails with ErrFile.
func Open(name string) (*Document, error) {
	type content struct {
		text []byte
		err  error
	}
	read := make(chan content, 1)
	go func() {
		text, err := readFile(name)
		read <- content{text, err}
	}()
	select {
	case c := <-read:
		if c.err != nil {
			return nil, c.err
		}
		return Parse(name, c.text)
	case <-time.After(readLimit):
		return nil, fmt.Errorf("%w: %s was not read within %v", ErrFile, name, readLimit)
	}
}

// readFile reads what is more than a file can have, at most. It waits for a pipe's writer, or a file system, for ever.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// Parse reads what a file has. It fails with ErrFile.
func Parse(name string, text []byte) (*Document, error) {
	d := &Document{Name: name}
	switch {
	case len(text) > maxFile:
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrFile, name, maxFile)
	case !utf8.Valid(text):
		return nil, fmt.Errorf("%w: %s is not in UTF-8", ErrFile, name)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var root, second yaml.Node
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
		return d, nil
	} else if err != nil {
		return nil, d.syntax(err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, d.Errorf(&second, "a second document: a file has one")
	} else if !errors.Is(err, io.EOF) {
		return nil, d.syntax(err)
	}
	if err := d.checkNode(&root); err != nil {
		return nil, err
	}
	if top := root.Content[0]; top.Kind == yaml.MappingNode {
		d.Root = top
	} else if top.Tag != "!!null" {
		return nil, d.Errorf(top, "%s, where keys and values are expected, as in memory: 512M", kindOf(top))
	}
	return d, nil
}

// checkNode refuses what is not taken anywhere in a document: aliases, and a key that is there twice.
func (d *Document) checkNode(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return d.Errorf(n, "anchors and aliases are not taken; write the value where it belongs")
	}
	lines := map[string]int{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			if child.Kind != yaml.ScalarNode {
				return d.Errorf(child, "%s, where a key is expected", kindOf(child))
			}
			if first, ok := lines[child.Value]; ok {
				return d.Errorf(child, "%s is there already, in line %d", child.Value, first)
			}
			lines[child.Value] = child.Line
		}
		if err := d.checkNode(child); err != nil {
			return err
		}
	}
	return nil
}

// Errorf returns an error at a node's line. It is an ErrFile.
func (d *Document) Errorf(n *yaml.Node, format string, args ...any) error {
	return &documentError{d.At(n), fmt.Errorf(format, args...)}
}

// At is where a node is: the file and the line.
func (d *Document) At(n *yaml.Node) string { return fmt.Sprintf("%s:%d", d.Name, n.Line) }

type documentError struct {
	at  string
	err error
}

func (e *documentError) Error() string        { return e.at + ": " + e.err.Error() }
func (e *documentError) Unwrap() error        { return e.err }
func (e *documentError) Is(target error) bool { return target == ErrFile }

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntax puts the line of the parser's error where ours have it.
func (d *Document) syntax(err error) error {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return &documentError{d.Name, err}
	}
	line, _ := strconv.Atoi(m[1]) // 0: the parser has none, and means the first
	return &documentError{fmt.Sprintf("%s:%d", d.Name, max(line, 1)), fmt.Errorf("no YAML: %s", m[2])}
}

// kindOf says what a node is.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	if len(n.Value) > maxQuoted {
		return strconv.Quote(n.Value[:maxQuoted]) + "…"
	}
	return strconv.Quote(n.Value)
}

// maxQuoted is how much of a value an error repeats, in bytes: a file that is no YAML can be a value as a whole.
const maxQuoted = 80

// Texts returns a node's value: a scalar's text as it is written, or those of a list's items.
func (d *Document) Texts(n *yaml.Node) (texts []string, list bool, err error) {
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag != "!!null":
		return []string{n.Value}, false, nil
	case n.Kind != yaml.SequenceNode:
		return nil, false, d.Errorf(n, "%s, where a value or a list of values is expected", kindOf(n))
	}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return nil, true, d.Errorf(item, "%s, where a value is expected", kindOf(item))
		}
		texts = append(texts, item.Value)
	}
	return texts, true, nil
}
