package accel_test

import (
	"errors"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// A mode that does not exist is a back end that says so.
func TestUnknownMode(t *testing.T) {
	b, note := accel.Choose("magic", accel.Guest{Board: x86.Board{}})
	if _, err := b.New(vm.Spec{}, nil); !errors.Is(err, vm.ErrConfig) || note != "" {
		t.Errorf("%v, note %q", err, note)
	}
}
