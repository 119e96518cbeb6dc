package guestmem

// store copies src to guest memory at dst, of the same length.
func store(dst, src []byte) { copy(dst, src) }
