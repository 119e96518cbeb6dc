package initramfs

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/u-root/u-root/pkg/cpio"
)

// entry is what was asked for, by the name that it was asked for.
type entry struct {
	cpio.Record
	weak  bool // a link that a program brings along: what others put in its place stays
	inode inode
}

// inode is the host's file behind an entry with more than one name; else it is zero.
type inode struct{ dev, ino uint64 }

func (e *entry) kind() uint64 { return e.Mode & cpio.S_IFMT }

// layout is where everything lies once all links are followed: those of the base and of the archive itself.
type layout struct {
	base  *tree
	links map[string]string // of the archive: by place, what they lead to
	files map[string]*entry // all that are no folders, by place
	dirs  map[string]*entry // nil: only because something lies in it
}

func (l *layout) readlink(path string) (string, bool) {
	if target, ok := l.links[path]; ok {
		return target, true
	}
	if l.files[path] != nil {
		return "", false
	}
	return l.base.readlink(path)
}

// records returns what is to be written, sorted by name.
func (a *Archive) records() ([]cpio.Record, error) {
	if a.laidOut != nil {
		return a.laidOut, nil
	}
	l := &layout{base: a.base.tree, dirs: map[string]*entry{}}
	if l.base == nil {
		l.base = &tree{}
	}
	if err := l.placeFiles(a.entries); err != nil {
		return nil, err
	}
	if err := l.placeDirs(a.entries); err != nil {
		return nil, err
	}
	a.laidOut = l.linked(l.sorted())
	return a.laidOut, nil
}

// placeFiles places all that are no folders. A link's place may be behind another link, so it is done again
// until nothing moves any more.
func (l *layout) placeFiles(entries []*entry) error {
	for range 8 {
		files, err := l.placedFiles(entries)
		if err != nil {
			return err
		}
		links := map[string]string{}
		for at, e := range files {
			if e.kind() == cpio.S_IFLNK {
				links[at] = target(e)
			}
		}
		if l.links != nil && maps.Equal(l.links, links) {
			l.files = files
			return nil
		}
		l.links = links
	}
	return fmt.Errorf("the archive's links %w: %w", ErrFile, errLoop)
}

func (l *layout) placedFiles(entries []*entry) (map[string]*entry, error) {
	files, weak := map[string]*entry{}, map[string]*entry{}
	for _, e := range entries {
		if e.kind() == cpio.S_IFDIR {
			continue
		}
		at, err := place(e.Name, l.readlink)
		if err != nil {
			return nil, refused(e, err)
		}
		_, isDir := l.base.dirs[at]
		switch {
		case isDir && e.kind() == cpio.S_IFLNK:
			// The base's folder stays: a kernel replaces none that has something in it.
		case isDir:
			return nil, refused(e, errors.New("the base initramfs has a folder there"))
		case e.weak && l.leadsTo(e, at):
			// By the links that are there, the file is in this place already.
		case e.weak && (files[at] == nil || files[at].weak):
			files[at], weak[at] = e, e
		case e.weak:
			weak[at] = e
		default:
			files[at] = e
		}
	}
	for at, e := range weak { // a program is not lost to a link that leads nowhere
		if there := files[at]; there != e && there.kind() == cpio.S_IFLNK && !l.exists(there, at, files) {
			files[at] = e
		}
	}
	return files, nil
}

// leadsTo reports whether a link at a place leads to that place itself.
func (l *layout) leadsTo(e *entry, at string) bool {
	to, err := place(inside(target(e)), l.readlink)
	return err == nil && to == at
}

// exists reports whether a link leads to something that is known.
func (l *layout) exists(e *entry, at string, files map[string]*entry) bool {
	dir, _ := split(at)
	to := target(e)
	if to == "" || to[0] != '/' {
		to = dir + "/" + to
	}
	to, err := resolve(to, l.readlink)
	_, isDir := l.base.dirs[to]
	return err == nil && (isDir || files[to] != nil)
}

// target is what a link leads to.
func target(e *entry) string {
	b := make([]byte, min(e.FileSize, maxPath))
	n, _ := e.ReadAt(b, 0) // it is in memory
	return string(b[:n])
}

func refused(e *entry, err error) error { return fmt.Errorf("/%s %w: %w", e.Name, ErrFile, err) }

// placeDirs places the folders, and those that lead to anything. A folder that is asked for where a link is
// goes where the link leads.
func (l *layout) placeDirs(entries []*entry) error {
	for _, e := range entries {
		if e.kind() != cpio.S_IFDIR {
			continue
		}
		at, err := resolve(e.Name, l.readlink)
		if err != nil {
			return refused(e, err)
		}
		if at != "" {
			l.dirs[at] = e
		}
	}
	for _, at := range slices.Concat(slices.Collect(maps.Keys(l.dirs)), slices.Collect(maps.Keys(l.files))) {
		for dir, _ := split(at); dir != ""; dir, _ = split(dir) {
			if _, there := l.dirs[dir]; !there {
				l.dirs[dir] = nil
			}
		}
	}
	for at := range l.dirs {
		if e := l.files[at]; e != nil {
			return refused(e, errors.New("it is a folder too"))
		}
	}
	return nil
}

// sorted returns all entries by place. A folder of the base is left as it is, but for one that was asked for.
func (l *layout) sorted() []*entry {
	all := map[string]*entry{}
	for at, e := range l.dirs {
		_, there := l.base.dirs[at]
		switch {
		case e != nil:
			all[at] = e
		case !there:
			all[at] = &entry{Record: cpio.Directory(at, 0o755)}
		}
	}
	maps.Copy(all, l.files)
	var sorted []*entry
	for _, at := range slices.Sorted(maps.Keys(all)) {
		e := *all[at]
		e.Record = cpio.MakeReproducible(e.Record)
		e.Name, e.NLink = at, 1
		sorted = append(sorted, &e)
	}
	return sorted
}

// linked makes the names of one file hard links: the same inode number, and the content with the last.
func (l *layout) linked(entries []*entry) []cpio.Record {
	names := map[inode][]*entry{}
	for _, e := range entries {
		if e.inode != (inode{}) {
			names[e.inode] = append(names[e.inode], e)
		}
	}
	var records []cpio.Record
	number := uint64(0)
	for _, e := range entries {
		if l.base.shared[e.Name] && e.kind() == cpio.S_IFREG {
			// The kernel writes into a file that is there, and so into all its other names. A link in
			// between makes it a file of its own.
			records = append(records, cpio.MakeReproducible(cpio.Symlink(e.Name, ".")))
		}
		if same := names[e.inode]; len(same) > 1 {
			if e.Ino == 0 {
				number++
				for _, s := range same {
					s.Ino, s.NLink = number, uint64(len(same))
				}
			}
			if e != same[len(same)-1] {
				e.ReaderAt, e.FileSize = nil, 0
			}
		}
		records = append(records, e.Record)
	}
	return records
}
