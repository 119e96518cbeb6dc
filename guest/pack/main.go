// Command pack builds the agent for each architecture that guests have, and writes it, packed, to a
// folder, as package guest embeds it: "make guest" runs it. The same Go builds the same bytes
// wherever and whenever it does.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// architectures are those of guests, and Go's names for them.
var architectures = map[string]string{"x86_64": "amd64", "arm64": "arm64"}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run ./guest/pack FOLDER")
		os.Exit(2)
	}
	for arch, goarch := range architectures {
		if err := pack(filepath.Join(os.Args[1], "agent-"+arch+".zst"), goarch); err != nil {
			fmt.Fprintf(os.Stderr, "pack: the agent for %s: %v\n", arch, err)
			os.Exit(1)
		}
	}
}

// pack writes the agent for an architecture to a file.
func pack(to, goarch string) error {
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		return err
	}
	program, err := build(filepath.Join(dir, "init"), goarch)
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		return err
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	packed := w.EncodeAll(program, nil)
	return errors.Join(os.WriteFile(to, packed, 0o644), w.Close())
}

// build builds the agent and returns its bytes, into which nothing of this machine and its settings
// gets.
func build(out, goarch string) ([]byte, error) {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out,
		"github.com/ktstr/ktstr-vmm/guest/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off", "GOWORK=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%v: %w", cmd, err)
	}
	return os.ReadFile(out)
}
