// Package guest carries what runs in guests, built by "make guest": the embedded guest's image, from
// the C in src, and the agent, which is PID 1 of a Linux guest, from the Go in agent.
package guest

import (
	_ "embed"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// Demo is the image for x86_64: an ELF executable with a 64-bit entry point that takes
// boot_params, as vmlinux does.
//
//go:embed demo-x86_64.elf
var Demo []byte

//go:embed agent-x86_64.zst
var agentX86 []byte

// ErrArch is an architecture that no guest has.
var ErrArch = errors.New("there is no guest of this architecture")

// Agent returns the agent for an architecture, as uname names it: a static ELF executable. It
// unpacks it anew at every call, in some milliseconds. It fails with ErrArch.
func Agent(arch string) ([]byte, error) {
	packed, ok := map[string][]byte{"x86_64": agentX86}[arch]
	if !ok {
		return nil, fmt.Errorf("%w: %q, it can be \"x86_64\"", ErrArch, arch)
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(packed, nil)
}
