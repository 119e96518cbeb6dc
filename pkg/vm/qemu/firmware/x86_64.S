/* What an emulated x86_64 machine runs before its kernel: from the reset vector to the state that the host
 * asks for, which lies in the mailbox, in conventional memory. The layout of the mailbox is ../x86.go's.
 *
 * These are the last KiB of the 64 KiB ROM below 4 GiB (SDM volume 3, section 10.1.4), which shows below
 * 1 MiB too, where the kernel's page tables map it. */

	.set	MAILBOX, 0x5f00
	.set	ALIVE, MAILBOX		/* u32, written here: the firmware runs */
	.set	GO, MAILBOX + 0x04	/* u32, written by the host: all of the state is there */
	.set	RIP, MAILBOX + 0x08
	.set	RSI, MAILBOX + 0x10
	.set	RSP, MAILBOX + 0x18
	.set	RFLAGS, MAILBOX + 0x20
	.set	CR0, MAILBOX + 0x28
	.set	CR3, MAILBOX + 0x30
	.set	CR4, MAILBOX + 0x38
	.set	EFER, MAILBOX + 0x40
	.set	GDTR, MAILBOX + 0x48	/* u16 limit, u64 base */
	.set	MSRS, MAILBOX + 0x54	/* u32, how many follow: u32 index, u64 value */

	.set	BOOT_CS, 0x10		/* Linux boot protocol, "64-bit boot protocol" */
	.set	BOOT_DS, 0x18
	.set	MSR_EFER, 0xc0000080
	.set	LOW, 0xf0000		/* where the ROM shows below 1 MiB */

	.section .text, "ax"
	.code16
	.globl	_start
_start:
	cli
	cld
	xorw	%ax, %ax
	movw	%ax, %ds
	movl	$1, ALIVE
1:	pause
	cmpl	$0, GO
	je	1b
	lgdtl	GDTR
	movl	CR4, %eax
	movl	%eax, %cr4
	movl	CR3, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	EFER, %eax
	movl	EFER + 4, %edx
	wrmsr
	movl	CR0, %eax		/* protection and paging at once: into long mode's compatibility mode */
	movl	%eax, %cr0
	ljmpl	$BOOT_CS, $(LOW + long)

	.code64
long:	movl	$BOOT_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	movl	%eax, %ss
	movl	MSRS, %edi
	movl	$(MSRS + 4), %esi
2:	testl	%edi, %edi
	jz	3f
	movl	(%rsi), %ecx
	movl	4(%rsi), %eax
	movl	8(%rsi), %edx
	wrmsr
	addl	$12, %esi
	decl	%edi
	jmp	2b
3:	lidt	no_idt(%rip)
	movq	RSP, %rsp
	pushq	RFLAGS
	popfq
	movq	RSI, %rsi
	movl	$0, %eax		/* and not by xor: the flags are set already */
	movl	$0, %ebx
	movl	$0, %ecx
	movl	$0, %edx
	movl	$0, %edi
	movl	$0, %ebp
	jmp	*RIP

	.balign	2
no_idt:	.word	0
	.quad	0

	.org	0x3f0			/* the reset vector */
	.code16
	ljmp	$LOW >> 4, $_start
	.org	0x400

	.section .note.GNU-stack, "", @progbits
