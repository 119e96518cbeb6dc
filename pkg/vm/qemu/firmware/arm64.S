/* What an emulated arm64 machine runs before its kernel, from flash at 0, where its first processor begins at EL1
 * with the MMU off; the others wait for PSCI's CPU_ON. It waits for what the host asks for, in the mailbox, and
 * jumps there. The layout of the mailbox is ../arm64.go's. */

	.set	MAILBOX, 0x40100000
	.set	ALIVE, 0		/* u32, written here: the firmware runs */
	.set	GO, 4			/* u32, written by the host: all of the state is there */
	.set	TREE, 8			/* u64, for x0 */
	.set	ENTRY, 16		/* u64 */

	.section .text, "ax"
	.globl _start
_start:	ldr	x5, =MAILBOX
	mov	w0, #1
	str	w0, [x5, #ALIVE]
1:	yield
	ldr	w0, [x5, #GO]
	cbz	w0, 1b
	dmb	sy
	ldr	x0, [x5, #TREE]
	ldr	x4, [x5, #ENTRY]
	mov	x1, xzr			/* Linux, Documentation/arch/arm64/booting.rst, "Call the kernel image" */
	mov	x2, xzr
	mov	x3, xzr
	br	x4
