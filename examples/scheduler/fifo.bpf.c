//go:build ignore

/* A global FIFO: one queue for all processors, and tasks take turns. */
#include "scx.h"

char _license[] SEC("license") = "GPL";

/* Set before it is loaded. */
const volatile char forget[TASK_COMM_LEN]; /* tasks of this name never run again; a * is any rest */
const volatile bool reject;                 /* the verifier is given a reason to refuse the program */

u64 enqueued, dispatched;

static bool forgotten(struct task_struct *p)
{
	if (!forget[0])
		return 0;
	/* Unrolled, for the verifier wants to know which byte of a task is read. */
#pragma clang loop unroll(full)
	for (int i = 0; i < TASK_COMM_LEN; i++) {
		if (forget[i] == '*')
			return 1;
		if (p->comm[i] != forget[i])
			return 0;
		if (!forget[i])
			break;
	}
	return 1;
}

/* An idle processor is woken, and finds the task in the queue. Arguments come as an array: u64 each. */
SEC("struct_ops/fifo_select_cpu")
s32 fifo_select_cpu(u64 *args)
{
	bool idle;

	return scx_bpf_select_cpu_dfl((struct task_struct *)args[0], (s32)args[1], args[2], &idle);
}

SEC("struct_ops/fifo_enqueue")
void fifo_enqueue(u64 *args)
{
	struct task_struct *p = (struct task_struct *)args[0];

	while (reject)
		;
	__sync_fetch_and_add(&enqueued, 1);
	if (forgotten(p))
		return;
	if (scx_bpf_dsq_insert)
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, args[1]);
	else
		scx_bpf_dispatch(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, args[1]);
	__sync_fetch_and_add(&dispatched, 1);
}

SEC(".struct_ops.link")
struct sched_ext_ops fifo = {
	.select_cpu = (void *)fifo_select_cpu,
	.enqueue = (void *)fifo_enqueue,
	.timeout_ms = 30000, /* the kernel's longest; set before it is loaded */
	.name = "fifo",
};
