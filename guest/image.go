// Package guest carries what runs in guests, built by "make guest": the embedded guest's image, from
// the C in src, and the agent, which is PID 1 of a Linux guest, from the Go in agent.
package guest

import (
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// The images: for x86_64 an ELF executable with a 64-bit entry point that takes boot_params, as vmlinux does; for
// arm64 an Image.
var (
	//go:embed demo-x86_64.elf
	demoX86 []byte
	//go:embed demo-arm64.img
	demoArm64 []byte
)

var (
	//go:embed agent-x86_64.zst
	agentX86 []byte
	//go:embed agent-arm64.zst
	agentArm64 []byte
)

// ErrArch is an architecture that no guest has.
var ErrArch = errors.New("there is no guest of this architecture")

// Architectures are those that guests have, as reports name them.
var Architectures = []string{"x86_64", "arm64"}

// Demo returns the embedded guest for an architecture. It fails with ErrArch.
func Demo(arch string) ([]byte, error) {
	image, ok := map[string][]byte{"x86_64": demoX86, "arm64": demoArm64}[arch]
	if !ok {
		return nil, fmt.Errorf("%w: %q, it can be %s", ErrArch, arch, strings.Join(Architectures, " or "))
	}
	return image, nil
}

// Agent returns the agent for an architecture: a static ELF executable. It
// unpacks it anew at every call, in some milliseconds. It fails with ErrArch.
func Agent(arch string) ([]byte, error) {
	packed, ok := map[string][]byte{"x86_64": agentX86, "arm64": agentArm64}[arch]
	if !ok {
		return nil, fmt.Errorf("%w: %q, it can be %s", ErrArch, arch, strings.Join(Architectures, " or "))
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(packed, nil)
}
