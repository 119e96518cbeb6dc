package guestmem

// storeByte stores v at p with release order, by an instruction that touches no other byte.
//
//go:noescape
func storeByte(p *byte, v byte)
