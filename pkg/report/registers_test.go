package report_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

func TestRegisters(t *testing.T) {
	name := func(address uint64) string {
		return map[uint64]string{
			0xffffffff81c4c0ab: "default_idle+0xb/0x10",
			0xffff800080e0a5c8: "cpu_\x1bdo_idle+0x8/0xc",
			0xffff800080e0a600: "default_idle_call+0x20/0x2c",
		}[address]
	}
	all := []vm.Registers{
		{CPU: 0, State: vm.Halted, PC: 0xffffffff81c4c0ab, SP: 0xffffc9000009bee8, Values: []vm.Register{
			{Name: "rip", Value: 0xffffffff81c4c0ab}, {Name: "rsp", Value: 0xffffc9000009bee8},
			{Name: "rflags", Value: 0x246}, {Name: "rax", Value: 1}}},
		{CPU: 1, PC: 0xffff800080e0a5c8, Values: []vm.Register{{Name: "pc", Value: 0xffff800080e0a5c8},
			{Name: "x30", Value: 0xffff800080e0a600}}},
		{CPU: 2, State: vm.Running, PC: 0x401000},
		{CPU: 3, Err: errors.New("it did not leave the guest: no answer within 5s")},
	}
	const want = `CPU 0: halted, pc default_idle+0xb/0x10
  rip       ffffffff81c4c0ab  rsp       ffffc9000009bee8  rflags    0000000000000246
  rax       0000000000000001

CPU 1: pc cpu_\x1bdo_idle+0x8/0xc, lr default_idle_call+0x20/0x2c
  pc        ffff800080e0a5c8  x30       ffff800080e0a600

CPU 2: running, pc 0x401000

CPU 3: it did not leave the guest: no answer within 5s
`
	var b strings.Builder
	if err := report.WriteRegisters(&b, all, name); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(report.RegistersJSON(all, name))
	const wantJSON = `[{"cpu":0,"state":"halted","pc":"0xffffffff81c4c0ab","symbol":"default_idle+0xb/0x10",` +
		`"sp":"0xffffc9000009bee8","registers":{"rax":"0x1","rflags":"0x246","rip":"0xffffffff81c4c0ab",` +
		`"rsp":"0xffffc9000009bee8"}},` +
		`{"cpu":1,"pc":"0xffff800080e0a5c8","symbol":"cpu_\u001bdo_idle+0x8/0xc","sp":"0x0",` +
		`"registers":{"pc":"0xffff800080e0a5c8","x30":"0xffff800080e0a600"}},` +
		`{"cpu":2,"state":"running","pc":"0x401000","sp":"0x0"},` +
		`{"cpu":3,"error":"it did not leave the guest: no answer within 5s"}]`
	if err != nil || string(text) != wantJSON {
		t.Error(cmp.Diff(wantJSON, string(text)), err)
	}
}
