/* Entry of the embedded guest on arm64: an Image, entered at EL1 with the MMU off and the device tree's
 * address in x0. Linux, Documentation/arch/arm64/booting.rst.
 *
 * It maps all there is to itself, devices below the first GiB and memory above, and turns the caches on, so
 * that the ring is ordinary memory here. */

	.section .text.start, "ax"
	.globl _start
_start:	b	begin
	.long	0
	.quad	0			/* text_offset */
	.quad	image_size		/* with .bss and the stack */
	.quad	2			/* little-endian, 4 KiB pages, near the start of RAM */
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.long	0

/* MAIR_EL1: attribute 0 is Device-nGnRnE, 1 is Normal, write-back. TCR_EL1: 39 bits of addresses by TTBR0,
 * tables write-back and inner shareable, none by TTBR1, 40 bits of physical ones. SCTLR_EL1: M, C and I. Arm
 * Architecture Reference Manual, D19.2. */
begin:	mov	x19, x0
	movz	x0, #0xff00
	msr	mair_el1, x0
	ldr	x0, =(25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32)
	msr	tcr_el1, x0
	adr	x0, table
	msr	ttbr0_el1, x0
	adr	x0, vectors
	msr	vbar_el1, x0
	mov	x0, #(3 << 20)		/* vector registers may be used */
	msr	cpacr_el1, x0
	isb
	tlbi	vmalle1
	dsb	nsh
	isb
	mrs	x0, sctlr_el1
	mov	x1, #(1 << 0 | 1 << 2 | 1 << 12)
	orr	x0, x0, x1
	bic	x0, x0, #2		/* unaligned accesses are allowed */
	msr	sctlr_el1, x0
	isb
	adrp	x0, stack_top
	add	x0, x0, :lo12:stack_top
	mov	sp, x0
	mov	x0, x19
	bl	cpu_main
	/* cpu_main does not return */
1:	b	1b

	.balign	2048
vectors:
	.rept	16
	mrs	x0, esr_el1
	mrs	x1, elr_el1
	mrs	x2, far_el1
	b	cpu_fault
	.balign	128
	.endr

	.balign	4096
table:	.quad	0x0060000000000401	/* 0 to 1 GiB: a block of attribute 0, accessed, never executed */
	.set	i, 1
	.rept	511
	.quad	i << 30 | 0x705		/* attribute 1, inner shareable, accessed */
	.set	i, i + 1
	.endr

	.section .bss
	.balign	16
	.skip	16384
stack_top:

	.section .note.GNU-stack, "", @progbits
