package initramfs

import "io"

// NeededBy is what an ELF file says that it needs, and its interpreter.
func NeededBy(r io.ReaderAt) (interp string, needed []string, err error) {
	o, err := readObject(r)
	if err != nil {
		return "", nil, err
	}
	return o.interp, o.needed, nil
}

// ParseCache is how many names a loader's cache has.
func ParseCache(b []byte) int { return len(parseCache(b)) }

// ReadBase is what SetBase does, with a limit of its own for what is unpacked.
func ReadBase(r io.ReaderAt, n, unpack int64) error {
	_, err := readTree(r, n, unpack)
	return err
}
