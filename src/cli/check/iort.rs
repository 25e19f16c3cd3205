// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the firmware of an Arm machine says of its PCI root complexes: the ACPI table IORT ("IO Remapping Table", Arm DEN
//! 0049, E.f).

use super::tree::Tree;

const PATH: &str = "sys/firmware/acpi/tables/IORT";
/// Behind the header of every ACPI table: how many nodes, and where the first is.
const NODES: usize = 36;
const FIRST_NODE: usize = 40;
/// A node: its type, its length, and, for a root complex, the flags of its memory accesses.
const TYPE: usize = 0;
const LENGTH: usize = 1;
const MEMORY_FLAGS: usize = 16 + 7;
const ROOT_COMPLEX: u8 = 2;
/// Accesses that a page table makes cacheable are coherent, whatever the device asks for (CANWBS).
const CANWBS: u8 = 1 << 2;

/// Whether all root complexes say CANWBS; `None` where there is no such table, none in it, or no permission to read it.
pub(super) fn keeps_caches_coherent(tree: &Tree) -> Option<bool> {
    let table = tree.bytes(PATH)?;
    let mut at = u32_at(&table, FIRST_NODE)? as usize;
    let mut all = None;
    for _ in 0..u32_at(&table, NODES)? {
        let node = table.get(at..)?;
        if *node.get(TYPE)? == ROOT_COMPLEX {
            let has = node.get(MEMORY_FLAGS)? & CANWBS != 0;
            all = Some(all.unwrap_or(true) && has);
        }
        let length = u16::from_le_bytes([*node.get(LENGTH)?, *node.get(LENGTH + 1)?]);
        at += usize::from(length).max(1);
    }
    all
}

fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    let bytes = table.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::tree::TestTree;
    use super::*;

    /// A table with nodes of these types and flags.
    fn table(nodes: &[(u8, u8)]) -> Vec<u8> {
        let mut table = vec![0; 48];
        table[NODES..NODES + 4].copy_from_slice(&(nodes.len() as u32).to_le_bytes());
        table[FIRST_NODE..FIRST_NODE + 4].copy_from_slice(&48_u32.to_le_bytes());
        for &(kind, flags) in nodes {
            let mut node = [0; 40];
            node[TYPE] = kind;
            node[LENGTH..LENGTH + 2].copy_from_slice(&40_u16.to_le_bytes());
            node[MEMORY_FLAGS] = flags;
            table.extend(node);
        }
        table
    }

    fn read(table: &[u8]) -> Option<bool> {
        let test = TestTree::new(&[]);
        test.file(PATH, table);
        keeps_caches_coherent(&test.tree)
    }

    #[test]
    fn every_root_complex_must_say_canwbs() {
        // ITS group 0, SMMUv3 4. QEMU's `virt` has flags 3: CPM and DACS.
        assert_eq!(read(&table(&[(0, 0), (4, 0xff), (2, 7)])), Some(true));
        assert_eq!(read(&table(&[(2, 7), (2, 3)])), Some(false));
        assert_eq!(read(&table(&[(2, 3), (2, 7)])), Some(false));
        assert_eq!(read(&table(&[(4, 7)])), None);
        assert_eq!(keeps_caches_coherent(&TestTree::new(&[]).tree), None);
    }

    #[test]
    fn a_table_that_is_cut_or_lies_tells_nothing() {
        let whole = table(&[(4, 0), (2, 7)]);
        for length in 0..48 + 40 + MEMORY_FLAGS {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
        let mut lies = whole.clone();
        lies[NODES..NODES + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&lies), None);
        lies[49..51].copy_from_slice(&[0, 0]);
        assert_eq!(read(&lies), None);
    }
}
