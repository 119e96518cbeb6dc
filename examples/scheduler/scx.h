/* The types and functions of Linux 6.12's sched_ext that the FIFO uses, by name: where their fields are is found in the
 * kernel's own types when the program is loaded. Sources: include/linux/sched.h, include/linux/sched/ext.h,
 * kernel/sched/ext.c. */
#ifndef SCX_H
#define SCX_H

#define SEC(name) __attribute__((section(name), used))
#define __ksym __attribute__((section(".ksyms")))
#define __weak __attribute__((weak))

typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef _Bool bool;

#define TASK_COMM_LEN 16

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct task_struct {
	char comm[TASK_COMM_LEN];
};

struct sched_ext_ops {
	s32 (*select_cpu)(struct task_struct *p, s32 prev_cpu, u64 wake_flags);
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	u32 timeout_ms;
	char name[128];
};

#pragma clang attribute pop

#define SCX_DSQ_GLOBAL 0x8000000000000001ULL
#define SCX_SLICE_DFL 20000000ULL /* ns */

extern s32 scx_bpf_select_cpu_dfl(struct task_struct *p, s32 prev_cpu, u64 wake_flags, bool *is_idle) __ksym;
/* The same, by its name up to 6.12, and since 6.13. */
extern void scx_bpf_dispatch(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags) __ksym __weak;
extern void scx_bpf_dsq_insert(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags) __ksym __weak;

#endif
