package suite

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// maxFolderName bounds a folder's name, in bytes: file systems take 255, and archives less of a whole path.
const maxFolderName = 120

// plain are the bytes of a name that are one in its folder's name, too; a dot is not so at the beginning.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+=,@[]."

// folderName returns the name of a run's folder. Names may have anything in them: what is not plain is escaped as in
// URLs, and of what is too long there are the beginning and a hash. Different names have different folders.
func folderName(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		if strings.IndexByte(plain, c) >= 0 && (c != '.' || i > 0) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	s := b.String()
	if len(s) > maxFolderName {
		s = fmt.Sprintf("%s~%x", s[:maxFolderName-17], sha256.Sum256([]byte(name)))[:maxFolderName]
	}
	return s
}
