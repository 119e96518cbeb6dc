#include "textflag.h"

// STLRB: Arm Architecture Reference Manual, C6.2.
TEXT ·storeByte(SB), NOSPLIT, $0-9
	MOVD	p+0(FP), R0
	MOVBU	v+8(FP), R1
	STLRB	R1, (R0)
	RET
