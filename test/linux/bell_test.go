//go:build linuxbed

package linux

import "testing"

// The guest rings, where it has a doorbell, for the end of its command and of its scheduler, from Linux's user mode,
// and is heard.
func TestX86Doorbell(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		flags []string
		code  int
	}{
		"EXIT": {nil, 3},
		"SCDX": {[]string{"--scheduler", "busybox false"}, 121},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, r := reported(t, append(tc.flags, "--poll", "1s", "--", "busybox", "sh", "-c", "busybox sleep 1; exit 3")...)
			if e.code != tc.code || r.Doorbell.Rings == 0 || r.Doorbell.Drains == 0 {
				t.Errorf("exit code %d, %d rings, %d drains for them; %s", e.code, r.Doorbell.Rings, r.Doorbell.Drains, e.stderr)
			}
		})
	}
}
