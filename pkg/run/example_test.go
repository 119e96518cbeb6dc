package run_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

func Example() {
	image, err := guest.Demo("x86_64")
	if err != nil {
		log.Fatal(err)
	}
	backend, _ := accel.Choose(accel.Auto, accel.Guest{Board: x86.Board{}})
	result := run.Run(context.Background(), run.Config{
		VM: vm.Config{
			Kernel:  x86.ELF{File: bytes.NewReader(image)},
			Backend: backend,
			Cmdline: "demo.scenario=fail",
			Memory:  256 << 20,
		},
		Timeout: 10 * time.Second,
		Handlers: func(mux *monitor.Mux) {
			mux.HandleFunc(shm.TestResult, func(m shm.Message) monitor.Verdict {
				fmt.Printf("result: %s\n", m.Payload)
				return monitor.Continue
			})
		},
	})
	fmt.Println(result.Outcome, result.ExitCode)
}
