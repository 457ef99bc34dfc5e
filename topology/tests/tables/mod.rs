//! Writes SRAT and HMAT tables, for tests: the layouts of the ACPI specification (6.5, sections 5.2.16 and 5.2.28), put down
//! once more, so that the reader is not its own judge.

#![allow(dead_code, reason = "each test file uses its part")]

/// A table that is being written: the header with a length and a checksum still to come, then what the table begins with.
fn begun(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend([0; 4]); // length
    table.extend([revision, 0]); // checksum
    table.extend(b"HETMEM"); // OEM
    table.extend(b"FIXTURE "); // OEM's table
    table.extend(1_u32.to_le_bytes()); // OEM's revision
    table.extend(b"HTMM"); // compiler
    table.extend(1_u32.to_le_bytes()); // its revision
    table.extend(body);
    table
}

/// Length and checksum put in.
pub(crate) fn finished(mut table: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(table.len()).expect("tables are small");
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = 0_u8.wrapping_sub(table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    table
}

/// An SRAT.
pub(crate) struct Srat(Vec<u8>);

impl Srat {
    pub(crate) fn new() -> Self {
        let mut body = 1_u32.to_le_bytes().to_vec();
        body.extend([0; 8]);
        Self(begun(b"SRAT", 3, &body))
    }

    /// Type 0: a processor by its local APIC.
    pub(crate) fn processor(mut self, domain: u8, apic: u8) -> Self {
        self.0.extend([0, 16, domain, apic, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        self
    }

    /// Type 1: memory. `flags`: 1 enabled, 2 hot-pluggable, 4 non-volatile, 8 specific-purpose.
    pub(crate) fn memory(mut self, domain: u32, base: u64, len: u64, flags: u32) -> Self {
        self.0.extend([1, 40]);
        self.0.extend(domain.to_le_bytes());
        self.0.extend([0; 2]);
        self.0.extend(base.to_le_bytes());
        self.0.extend(len.to_le_bytes());
        self.0.extend([0; 4]);
        self.0.extend(flags.to_le_bytes());
        self.0.extend([0; 8]);
        self
    }

    /// Type 2: a processor by its x2APIC.
    pub(crate) fn x2apic(mut self, domain: u32, apic: u32) -> Self {
        self.0.extend([2, 24, 0, 0]);
        self.0.extend(domain.to_le_bytes());
        self.0.extend(apic.to_le_bytes());
        self.0.extend(1_u32.to_le_bytes());
        self.0.extend([0; 8]);
        self
    }

    /// Type 3: a processor of arm64, by its GIC interface.
    pub(crate) fn gicc(mut self, domain: u32, uid: u32) -> Self {
        self.0.extend([3, 18]);
        self.0.extend(domain.to_le_bytes());
        self.0.extend(uid.to_le_bytes());
        self.0.extend(1_u32.to_le_bytes());
        self.0.extend([0; 4]);
        self
    }

    /// Type 5: a device that initiates accesses.
    pub(crate) fn generic_initiator(mut self, domain: u32) -> Self {
        self.0.extend([5, 32, 0, 1]);
        self.0.extend(domain.to_le_bytes());
        self.0.extend([0; 16]);
        self.0.extend(1_u32.to_le_bytes());
        self.0.extend([0; 4]);
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        finished(self.0)
    }
}

/// An HMAT of revision 2: latencies in units of picoseconds, bandwidths in units of MB/s.
pub(crate) struct Hmat(Vec<u8>);

impl Hmat {
    pub(crate) fn new() -> Self {
        Self(begun(b"HMAT", 2, &[0; 4]))
    }

    /// Structure 0: `memory` is attached to `initiator`.
    pub(crate) fn attached(mut self, initiator: u32, memory: u32) -> Self {
        self.0.extend([0, 0, 0, 0]);
        self.0.extend(40_u32.to_le_bytes());
        self.0.extend([1, 0, 0, 0]);
        self.0.extend(initiator.to_le_bytes());
        self.0.extend(memory.to_le_bytes());
        self.0.extend([0; 20]);
        self
    }

    /// Structure 1: a matrix of figures, a row for each initiator. `data`: 0 access, 1 read, 2 write latency; 3 access, 4 read, 5 write
    /// bandwidth.
    pub(crate) fn locality(
        mut self,
        data: u8,
        unit: u64,
        initiators: &[u32],
        targets: &[u32],
        figures: &[u16],
    ) -> Self {
        assert_eq!(figures.len(), initiators.len() * targets.len());
        let length = 32 + 4 * (initiators.len() + targets.len()) + 2 * figures.len();
        self.0.extend([1, 0, 0, 0]);
        self.0.extend(u32::try_from(length).expect("tables are small").to_le_bytes());
        self.0.extend([0, data, 0, 0]);
        for list in [initiators, targets] {
            self.0.extend(u32::try_from(list.len()).expect("tables are small").to_le_bytes());
        }
        self.0.extend([0; 4]);
        self.0.extend(unit.to_le_bytes());
        for domain in initiators.iter().chain(targets) {
            self.0.extend(domain.to_le_bytes());
        }
        for figure in figures {
            self.0.extend(figure.to_le_bytes());
        }
        self
    }

    /// Structure 2: a cache of `size` in front of `memory`, write-back and direct-mapped.
    pub(crate) fn cache(mut self, memory: u32, size: u64) -> Self {
        self.0.extend([2, 0, 0, 0]);
        self.0.extend(32_u32.to_le_bytes());
        self.0.extend(memory.to_le_bytes());
        self.0.extend([0; 4]);
        self.0.extend(size.to_le_bytes());
        self.0.extend(0x0040_1111_u32.to_le_bytes());
        self.0.extend([0; 4]);
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        finished(self.0)
    }
}

const GIB: u64 = 1 << 30;

/// The tables of the recorded machines that have some: fixture, table, bytes. The domains of `cxl` are numbered so that domain
/// and node differ.
pub(crate) fn of_fixtures() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let low = |domain| Srat::new().processor(domain, 0).memory(u32::from(domain), 0, 2 * GIB, 1);
    let soft_srat = low(0).memory(0, 4 * GIB, 6 * GIB, 1).memory(1, 10 * GIB, 8 * GIB, 1).bytes();
    let soft_hmat = Hmat::new()
        .attached(0, 0)
        .attached(0, 1)
        .locality(1, 1000, &[0], &[0, 1], &[80, 160])
        .locality(2, 1000, &[0], &[0, 1], &[85, 170])
        .locality(4, 100, &[0], &[0, 1], &[1200, 600])
        .locality(5, 100, &[0], &[0, 1], &[1000, 400])
        .bytes();
    let mut tables = Vec::new();
    for machine in ["soft-reserved", "soft-reserved-7.0", "soft-reserved-dax", "soft-reserved-kmem"] {
        tables.push((machine, "SRAT", soft_srat.clone()));
        tables.push((machine, "HMAT", soft_hmat.clone()));
    }
    let srat = low(3).x2apic(3, 300).memory(3, 4 * GIB, 6 * GIB, 1).memory(7, 10 * GIB, 16 * GIB, 0b1011).bytes();
    tables.push(("cxl", "SRAT", srat));
    let hmat = Hmat::new()
        .locality(0, 1000, &[3], &[3], &[95])
        .locality(4, 100, &[3], &[3], &[2000])
        .locality(5, 100, &[3], &[3], &[1800])
        .bytes();
    tables.push(("cxl", "HMAT", hmat));
    let srat = low(0).memory(0, 4 * GIB, 6 * GIB, 1).memory(1, 10 * GIB, 4 * GIB, 1).bytes();
    tables.push(("hbm-flat", "SRAT", srat));
    let hmat = Hmat::new()
        .attached(0, 0)
        .locality(0, 1000, &[0], &[0, 1], &[110, 130])
        .locality(3, 100, &[0], &[0, 1], &[1500, 4000])
        .cache(0, 64 << 20)
        .bytes();
    tables.push(("hbm-flat", "HMAT", hmat));
    // The memory of domain 2 is next to the device of domain 1; of domain 3's only that device's figures are known.
    let srat = Srat::new().processor(0, 0).generic_initiator(1).memory(0, 0, 2 * GIB, 1).memory(0, 4 * GIB, 6 * GIB, 1);
    let srat = srat.memory(2, 10 * GIB, 4 * GIB, 1).memory(3, 14 * GIB, 2 * GIB, 1).bytes();
    tables.push(("generic-initiator", "SRAT", srat));
    let hmat = Hmat::new()
        .attached(1, 2)
        .locality(0, 1000, &[0, 1], &[2, 3], &[77, 0xffff, 8, 12])
        .locality(3, 100, &[0, 1], &[2, 3], &[2000, 0xffff, 9000, 3000])
        .bytes();
    tables.push(("generic-initiator", "HMAT", hmat));
    let srat = low(0).memory(0, 4 * GIB, 6 * GIB, 1).memory(0, 10 * GIB, 54 * GIB, 0b11).bytes();
    tables.push(("hot-plug", "SRAT", srat));
    tables
}
