package agentproto_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// limit is the largest payload of these tests, in bytes.
const limit = 64

// A request that is too large is passed over, so that the next one can be read.
func TestTooLarge(t *testing.T) {
	var b bytes.Buffer
	for _, payload := range []string{strings.Repeat("x", limit+1), strings.Repeat("y", limit)} {
		if err := agentproto.WriteRequest(&b, shm.Crash, []byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	if typ, _, err := agentproto.ReadRequest(&b, limit); !errors.Is(err, agentproto.ErrTooLarge) || typ != shm.Crash {
		t.Errorf("%v, %v", typ, err)
	}
	if typ, payload, err := agentproto.ReadRequest(&b, limit); err != nil || typ != shm.Crash || len(payload) != limit {
		t.Errorf("%v, %q, %v", typ, payload, err)
	}
	if _, _, err := agentproto.ReadRequest(&b, limit); err != io.EOF {
		t.Errorf("%v", err)
	}
}

func TestReply(t *testing.T) {
	for _, text := range []string{"", "no", strings.Repeat("x", 10<<10)} {
		var b bytes.Buffer
		var failure error
		if text != "" {
			failure = errors.New(text)
		}
		if err := agentproto.WriteReply(&b, failure); err != nil {
			t.Fatal(err)
		}
		err := agentproto.ReadReply(&b)
		if (err == nil) != (text == "") || err != nil && !strings.HasPrefix(text, err.Error()) || b.Len() != 0 {
			t.Errorf("%.20q became %.100v, and %d bytes are left", text, err, b.Len())
		}
	}
}

// FuzzRequest reads requests from any bytes: each is what WriteRequest writes, none is larger than
// the limit, and all bytes are read.
func FuzzRequest(f *testing.F) {
	for _, b := range []string{
		"", "SCST", "STIM\x00\x00\x00\x00",
		"HSRC\x04\x00\x00\x00boomHSRC\x41\x00\x00\x00" + strings.Repeat("x", limit+1) +
			"TIXE\x04\x00\x00\x00\x03\x00\x00\x00",
		"HSRC\xff\xff\xff\xffx", "HSRC\x05\x00\x00\x00boom",
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for r := bytes.NewReader(b); ; {
			before := b[len(b)-r.Len():]
			typ, payload, err := agentproto.ReadRequest(r, limit)
			if errors.Is(err, agentproto.ErrTooLarge) {
				if taken := len(before) - r.Len(); taken <= 8+limit {
					t.Fatalf("%d bytes of %q are too many", taken, before)
				}
				continue
			}
			if err != nil {
				if r.Len() != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("%v, and %d bytes are left", err, r.Len())
				}
				return
			}
			var again bytes.Buffer
			err = agentproto.WriteRequest(&again, typ, payload)
			if err != nil || len(payload) > limit || !bytes.HasPrefix(before, again.Bytes()) {
				t.Fatalf("%q is %v %q, which is %q, %v", before, typ, payload, again.Bytes(), err)
			}
		}
	})
}

// FuzzReply reads an answer from any bytes: it never takes more than an answer has.
func FuzzReply(f *testing.F) {
	for _, b := range []string{"", "\x00\x00\x00\x00", "\x02\x00\x00\x00no and more",
		"\xff\xff\xff\xffx", "\x05\x00\x00\x00no"} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		err := agentproto.ReadReply(r)
		if accepted := len(b) >= 4 && bytes.Equal(b[:4], make([]byte, 4)); (err == nil) != accepted {
			t.Errorf("%q: %v", b, err)
		}
	})
}
