/* Entry of the embedded guest on x86_64: 64-bit boot protocol, boot_params in %rsi.
 *
 * It leaves ring 0 at once. Hosts that run guest kernels slowly (nested KVM that emulates them)
 * run ring 3 at full speed, so everything but this file happens there, with IOPL 3 so that
 * port I/O still works. Only the scenario "halt" stays: HLT is for ring 0. */

	.section .text.start, "ax"
	.globl _start
_start:
	outb	%al, $0x80		/* a sign of life before anything else */
	leaq	stack_top(%rip), %rsp
	lgdt	gdt_pointer(%rip)
	leaq	pml4(%rip), %rax
	movq	%rax, %cr3
	movq	%cr4, %rax
	orl	$0x600, %eax		/* OSFXSR, OSXMMEXCPT: vector registers may be used */
	movq	%rax, %cr4
	movq	%rsi, %rdi
	call	stays_in_ring0
	testl	%eax, %eax
	jnz	halt

	/* The hypervisor's timing leaf, where there is one. Under a KVM that runs ring 3 as a process
	 * of the host, CPUID there would show the host's. */
	movl	$0x40000000, %eax
	cpuid
	cmpl	$0x40000010, %eax
	jb	1f
	movl	$0x40000010, %eax
	cpuid
	movl	%eax, tsc_khz(%rip)
1:
	pushq	$0x23			/* SS */
	leaq	stack_top(%rip), %rax
	pushq	%rax			/* RSP */
	pushq	$0x3002			/* RFLAGS: IOPL 3, interrupts off */
	pushq	$0x2b			/* CS */
	leaq	ring3(%rip), %rax
	pushq	%rax			/* RIP */
	movq	%rsi, %rbx		/* survives iretq */
	iretq

halt:	cli
	hlt
	jmp	halt

ring3:	movq	%rbx, %rdi
	call	guest_main
	/* guest_main does not return */
1:	jmp	1b

/* int stays_in_ring0(const struct boot_params *): whether the command line asks for "halt".
 * By hand because every instruction counts here; %rsi is kept. */
stays_in_ring0:
	movl	0x228(%rdi), %edi	/* cmd_line_ptr */
	movq	$0x6e6563732e6f6d65, %rdx /* "emo.scen" */
1:	movb	(%rdi), %al
	incq	%rdi
	testb	%al, %al
	jz	3f
	cmpb	$'d', %al
	jne	1b
	cmpq	%rdx, (%rdi)
	jne	1b
	movq	$0x6c61683d6f697261, %rdx /* "ario=hal" */
	cmpq	%rdx, 8(%rdi)
	jne	3f
	cmpb	$'t', 16(%rdi)
	jne	3f
	movl	$1, %eax
	ret
3:	xorl	%eax, %eax
	ret

	.section .data
	.balign	8
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff	/* 0x10 ring 0 code, as the boot protocol has it */
	.quad	0x00cf93000000ffff	/* 0x18 ring 0 data */
	.quad	0x00cff3000000ffff	/* 0x20 ring 3 data */
	.quad	0x00affb000000ffff	/* 0x28 ring 3 code */
gdt_pointer:
	.word	. - gdt - 1
	.quad	gdt

/* The first GiB, mapped to itself by 2 MiB pages: present, writable, user. guest_main maps the
 * ring where it lies above. */
	.balign	4096
	.globl	pml4
pml4:	.quad	pdpt + 7
	.fill	511, 8, 0
pdpt:	.quad	pd + 7
	.fill	511, 8, 0
pd:	.set	i, 0
	.rept	512
	.quad	(i << 21) | 0x87
	.set	i, i + 1
	.endr

	.section .bss
	.globl	tsc_khz
	.balign	4
tsc_khz:
	.skip	4
	.balign	16
	.skip	16384
stack_top:

	.section .note.GNU-stack, "", @progbits
