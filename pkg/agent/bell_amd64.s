#include "textflag.h"

// func out(port uint16, v uint8)
TEXT ·out(SB), NOSPLIT, $0-3
	MOVW port+0(FP), DX
	MOVB v+2(FP), AX
	OUTB
	RET
