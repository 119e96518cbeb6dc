package exits

import (
	"fmt"
	"os"
	"testing"
)

func TestExits(t *testing.T) {
	fmt.Println("no line end follows")
	os.Exit(3)
}
