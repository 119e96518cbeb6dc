#include "textflag.h"

// Stores of x86 have release order: SDM volume 3, section 9.2.2.
TEXT ·storeByte(SB), NOSPLIT, $0-9
	MOVQ	p+0(FP), AX
	MOVB	v+8(FP), BX
	MOVB	BX, (AX)
	RET
