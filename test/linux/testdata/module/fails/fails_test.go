package fails

import (
	"fmt"
	"os"
	"testing"
)

func TestFails(t *testing.T) {
	fmt.Println("to stdout")
	fmt.Fprintln(os.Stderr, "to stderr")
	fmt.Println("to stdout again")
	t.Error("it fails")
}

func TestSkips(t *testing.T) { t.Skip("not here") }
