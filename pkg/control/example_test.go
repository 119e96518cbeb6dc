package control_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// A client follows a run to its end. Here the run is one of a test's own; one that ktstr-vmm has started is found by
// Find, or is where its --control says.
func Example() {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()
	end, err := start(filepath.Join(dir, "run.sock"), func(ctx context.Context, ring *shm.Writer) {
		_ = ring.Write(shm.TestResult, []byte(`{"name":"wakes","passed":true}`))
		<-ctx.Done()
	})
	if err != nil {
		log.Fatal(err)
	}

	client := control.Client{Path: filepath.Join(dir, "run.sock")}
	status, err := client.Status(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.ID, status.Name)

	last, err := client.Tail(ctx, control.TailOptions{Follow: true}, func(m control.Message) error {
		fmt.Printf("%d %s %s\n", m.Seq, m.Type, m.Payload)
		return client.Stop(ctx, true) // that is what we have waited for
	}, func(uint64) {})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(last.Result.Outcome, last.Result.ExitCode)

	if _, err := end(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 0123456789abcdef a test
	// 0 TEST {"name":"wakes","passed":true}
	// interrupted 143
}
