// Command agent is PID 1 of a Linux guest. It is built apart from the host's program and carried by
// package guest, so it imports what runs in the guest and nothing else.
package main

import "github.com/ktstr/ktstr-vmm/pkg/agent"

func main() { agent.Main() }
