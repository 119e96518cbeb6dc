package kerneltest

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

// Types returns the kernel's types, as they are in its section .BTF.
func (k Kernel) Types(t testing.TB) []byte {
	t.Helper()
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	u64 := &btf.Int{Name: "unsigned long", Size: 8}
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}
	comm := &btf.Array{Index: u32, Type: char, Nelems: 16}
	task := &btf.Struct{Name: "task_struct", Size: taskSize, Members: []btf.Member{
		at("policy", u32, taskPolicy), at("pid", &btf.Typedef{Name: "pid_t", Type: u32}, taskPID),
		at("comm", comm, taskComm),
	}}
	pointer := &btf.Pointer{Target: task}
	scx := &btf.Struct{Name: "scx_rq", Size: 0x10, Members: []btf.Member{
		at("flags", u32, scxFlags), at("nr_running", u32, scxNrRunning),
	}}
	either := &btf.Union{Size: 8, Members: []btf.Member{at("donor", pointer, 0), at("curr", pointer, 0)}}
	members := []btf.Member{
		at("nr_running", u32, rqNrRunning), at("", either, rqCurr), at("idle", pointer, rqIdle),
		at("clock", &btf.Typedef{Name: "u64", Type: u64}, rqClock), at("cpu", u32, rqCPU), at("online", u32, rqOnline),
	}
	if !k.NoSCX {
		members = append(members, at("scx", scx, rqSCX))
	}
	b, err := btf.NewBuilder([]btf.Type{&btf.Struct{Name: "rq", Size: rqSize, Members: members}, task}, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func at(name string, typ btf.Type, offset btf.Bits) btf.Member {
	return btf.Member{Name: name, Type: typ, Offset: offset * 8}
}
