package passes

import (
	"os"
	"testing"
)

func TestPasses(t *testing.T) { t.Log("logged") }

func TestReads(t *testing.T) {
	text, err := os.ReadFile("testdata/golden")
	if err != nil || string(text) != "golden\n" {
		t.Errorf("%q, %v", text, err)
	}
}
