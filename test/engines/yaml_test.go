package engines

import (
	"bytes"
	"os"
	"testing"

	"go.yaml.in/yaml/v3"
)

// load reads the documents of a YAML file.
func load[T any](t *testing.T, path string) (all []T) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var x T
		if err := d.Decode(&x); err != nil {
			if len(all) == 0 {
				t.Fatalf("%s: %v", path, err)
			}
			return all
		}
		all = append(all, x)
	}
}
