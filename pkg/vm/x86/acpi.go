package x86

import (
	"fmt"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The ACPI tables tell a kernel of its processors, its I/O APIC and its serial port, how to power off, and
// that there is nothing else to look for: no other power management, no PIC, no alarm clock. They lie where
// a BIOS has them, outside of every E820 entry. Sections are the ACPI specification's, 6.4.
const (
	rsdpAddr = 0xe0000
	acpiEnd  = 0xf0000

	localAPICAddr = 0xfee00000
	ioAPICAddr    = 0xfec00000

	maxAPICID = 254 // 255 is all of them

	sdtHeaderSize = 36
	fadtSize      = 276
)

// acpiTable is a system description table: 5.2.6. Its length and checksum are filled in.
func acpiTable(signature string, revision byte, body []byte) []byte {
	t := make([]byte, 0, sdtHeaderSize+len(body))
	t = append(t, signature...)
	t = le.AppendUint32(t, uint32(sdtHeaderSize+len(body)))
	t = append(t, revision, 0)
	t = append(t, "KTSTR KTSTRVMM"...) // OEM and its table's name
	t = le.AppendUint32(t, 1)
	t = append(t, "KTST"...) // who made it
	t = le.AppendUint32(t, 1)
	t = append(t, body...)
	t[9] = checksum(t)
	return t
}

// checksum is the byte that makes the sum of b and it zero.
func checksum(b []byte) byte {
	var sum byte
	for _, v := range b {
		sum += v
	}
	return -sum
}

// loadACPI writes the tables.
func loadACPI(ram *guestmem.Memory, c vm.Config) error {
	t, err := c.Topology.WithDefaults()
	if err != nil {
		return fmt.Errorf("%w: %w", vm.ErrConfig, err)
	}
	if id := t.APICID(t.CPUs() - 1); id > maxAPICID {
		return fmt.Errorf("%w: %s needs APIC IDs up to %d, there are %d", vm.ErrConfig, t, id, maxAPICID)
	}
	var image []byte
	put := func(t []byte) uint64 {
		image = append(image, make([]byte, -len(image)&15)...)
		at := rsdpAddr + uint64(len(image))
		image = append(image, t...)
		return at
	}
	const rsdpSize = 36
	put(make([]byte, rsdpSize))
	dsdt := put(acpiTable("DSDT", 2, dsdtBody()))
	fadt := put(acpiTable("FACP", 6, fadtBody(dsdt)))
	tables := []uint64{fadt, put(acpiTable("APIC", 5, madtBody(t)))}
	if t.Nodes > 0 {
		layout, err := Board{}.Layout(c.Memory, c.Reserved)
		if err != nil {
			return err
		}
		nodes, err := layout.Nodes(t.Nodes)
		if err != nil {
			return err
		}
		tables = append(tables, put(acpiTable("SRAT", 3, sratBody(t, nodes))), put(acpiTable("SLIT", 1, slitBody(t))))
	}
	xsdt := put(acpiTable("XSDT", 1, words(tables...)))

	// The root pointer: 5.2.5.3.
	rsdp := image[:rsdpSize]
	copy(rsdp, "RSD PTR ")
	copy(rsdp[9:], "KTSTR ")
	rsdp[15] = 2 // revision
	le.PutUint32(rsdp[20:], rsdpSize)
	le.PutUint64(rsdp[24:], xsdt)
	rsdp[8] = checksum(rsdp[:20])
	rsdp[32] = checksum(rsdp)

	if len(image) > acpiEnd-rsdpAddr {
		return fmt.Errorf("%w: ACPI tables of %d bytes, there is room for %d", vm.ErrSetup, len(image), acpiEnd-rsdpAddr)
	}
	if err := ram.Write(image, rsdpAddr); err != nil {
		return fmt.Errorf("%w: ACPI tables: %w", vm.ErrSetup, err)
	}
	return nil
}

// fadtBody is the fixed table: 5.2.9.
func fadtBody(dsdt uint64) []byte {
	const (
		offDSDT         = 40
		offBootArch     = 109
		offFlags        = 112
		offXDSDT        = 140
		offSleepControl = 244
		offSleepStatus  = 256

		noVGA, noMSI, noRTC = 1 << 2, 1 << 3, 1 << 5
		hardwareReduced     = 1 << 20
	)
	t := make([]byte, fadtSize)
	le.PutUint32(t[offDSDT:], uint32(dsdt))
	le.PutUint16(t[offBootArch:], noVGA|noMSI|noRTC)
	le.PutUint32(t[offFlags:], hardwareReduced)
	le.PutUint64(t[offXDSDT:], dsdt)
	copy(t[offSleepControl:], genericAddress(SleepControl))
	copy(t[offSleepStatus:], genericAddress(sleepStatus))
	return t[sdtHeaderSize:]
}

// genericAddress is a port of one byte: 5.2.3.2.
func genericAddress(port uint64) []byte {
	return le.AppendUint64([]byte{1, 8, 0, 1}, port) // in I/O space, 8 bits from bit 0 on, by bytes
}

// madtBody lists the interrupt controllers: 5.2.12.
func madtBody(t topology.Topology) []byte {
	b := le.AppendUint32(nil, localAPICAddr)
	b = le.AppendUint32(b, 0) // no 8259s
	for cpu := range t.CPUs() {
		b = append(b, 0, 8, byte(cpu), byte(t.APICID(cpu))) // a local APIC: the processor's number, the APIC's
		b = le.AppendUint32(b, 1)                           // enabled
	}
	b = append(b, 1, 12, 0, 0) // the I/O APIC
	b = le.AppendUint32(b, ioAPICAddr)
	return le.AppendUint32(b, 0) // its first interrupt
}

// sratBody says which node, which the table calls a proximity domain, has which processors and what memory: 5.2.16.
func sratBody(t topology.Topology, nodes [][]vm.Span) []byte {
	const enabled = 1
	b := le.AppendUint32(nil, 1) // reserved, always 1
	b = le.AppendUint64(b, 0)
	for cpu := range t.CPUs() { // 5.2.16.1; no node has a number beyond 8 bits
		b = append(b, 0, 16, byte(t.Place(cpu).Node), byte(t.APICID(cpu)))
		b = le.AppendUint32(b, enabled)
		b = append(b, make([]byte, 8)...) // no SAPIC, the node's other bits, no clock domain
	}
	for node, spans := range nodes {
		for _, s := range spans { // 5.2.16.2
			b = append(b, 1, 40)
			b = le.AppendUint32(b, uint32(node))
			b = le.AppendUint16(b, 0)
			b = le.AppendUint64(b, uint64(s.Base))
			b = le.AppendUint64(b, s.Size)
			b = le.AppendUint32(b, 0)
			b = le.AppendUint32(b, enabled)
			b = le.AppendUint64(b, 0)
		}
	}
	return b
}

// slitBody is the distances between nodes: 5.2.17.
func slitBody(t topology.Topology) []byte {
	b := le.AppendUint64(nil, uint64(t.Nodes))
	for _, row := range t.Distances {
		b = append(b, row...)
	}
	return b
}

// dsdtBody is AML that describes COM1, and names the sleep type of soft-off: 20.2.
func dsdtBody() []byte {
	resources := []byte{0x47, 1, 0, 0, 0, 0, 1, com1Size} // I/O ports, 16 bits decoded: 6.4.2.5
	le.PutUint16(resources[2:], com1Base)
	le.PutUint16(resources[4:], com1Base)
	resources = append(resources, 0x89, 6, 0, 3, 1) // one interrupt, consumed, by edge: 6.4.3.6
	resources = le.AppendUint32(resources, com1IRQ)
	resources = append(resources, 0x79, 0) // end: 6.4.2.9

	crs := amlPackage([]byte{0x11}, append([]byte{0x0a, byte(len(resources))}, resources...)) // Buffer
	device := []byte("COM1\x08_HID\x0c\x41\xd0\x05\x01\x08_UID\x00\x08_CRS")                  // PNP0501, a 16550
	device = amlPackage([]byte{0x5b, 0x82}, append(device, crs...))
	scope := amlPackage([]byte{0x10}, append([]byte("\\_SB_"), device...))
	return append(scope, "\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"...) // Package of 4 elements: 7.4.2.6
}

// amlPackage puts an opcode and a package length of one or two bytes before a body: 20.2.4.
func amlPackage(op, body []byte) []byte {
	if n := len(body) + 1; n < 1<<6 {
		return append(append(op, byte(n)), body...)
	}
	n := len(body) + 2
	return append(append(op, 0x40|byte(n&0xf), byte(n>>4)), body...)
}
