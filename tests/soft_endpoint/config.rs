// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space, as a guest's PCI core goes through it.

use std::collections::BTreeMap;

use crate::harness::{COMMAND, CONFIG, Driver, Fixture, MEMORY_AND_MASTER, command, reg, status};

const ALL: u32 = u32::MAX;

/// Capabilities by ID: where they are.
fn capabilities(driver: &mut Driver) -> BTreeMap<u16, u64> {
    let mut found = BTreeMap::new();
    let mut at = u64::from(driver.read_config(0x34) & 0xff);
    while at != 0 {
        let header = driver.read_config(at);
        assert_eq!(found.insert(header & 0xff, at), None, "a loop");
        at = u64::from(header >> 8);
    }
    found
}

fn extended_capabilities(driver: &mut Driver) -> BTreeMap<u16, u64> {
    let mut found = BTreeMap::new();
    let mut at = 0x100;
    while at != 0 {
        let header = driver.read32(CONFIG, at);
        assert_eq!(found.insert(header as u16, at), None, "a loop");
        at = u64::from(header >> 20);
    }
    found
}

#[test]
fn the_stock_driver_knows_the_function() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    assert_eq!(driver.read32(CONFIG, 0), 0xb500_104c);
    assert_eq!(driver.read_config(0x0e), 0, "one function, type 0");
}

#[test]
fn bars_tell_their_size_and_keep_their_address() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    for (bar, size) in [
        (0, 0x4000),
        (1, 0x1000),
        (2, 0x1000),
        (3, 0),
        (4, 0),
        (5, 0),
    ] {
        let register = 0x10 + 4 * bar;
        driver.write_config32(register, ALL);
        let read = driver.read32(CONFIG, register);
        assert_eq!(read, if size == 0 { 0 } else { !(size - 1) }, "BAR {bar}");
        let region = driver.0.region(bar as u32).expect("region");
        assert_eq!(region.size, u64::from(size), "BAR {bar}");
        driver.write_config32(register, 0xfebd_0000);
        let address = if size == 0 { 0 } else { 0xfebd_0000 };
        assert_eq!(driver.read32(CONFIG, register), address);
    }
    driver.write_config32(0x30, ALL);
    assert_eq!(driver.read32(CONFIG, 0x30), 0, "no ROM");
}

#[test]
fn every_capability_is_found_where_it_is_looked_for() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let found = capabilities(&mut driver);
    let ids: Vec<u16> = found.keys().copied().collect();
    assert_eq!(
        ids,
        [0x01, 0x05, 0x10, 0x11],
        "power, MSI, PCI Express, MSI-X"
    );
    let msix = found[&0x11];
    assert_eq!(driver.read_config(msix + 2) & 0x7ff, 31, "vectors less one");
    let express = found[&0x10];
    assert_eq!(driver.read_config(express + 2), 2, "version 2, an endpoint");
    let prefixes = driver.read_config(express + 38) & 1 << 5;
    assert_ne!(prefixes, 0, "end-to-end prefixes, as PASIDs need them");
    let found = extended_capabilities(&mut driver);
    let ids: Vec<u16> = found.keys().copied().collect();
    assert_eq!(ids, [0x0f, 0x13, 0x1b], "ATS, PRI, PASID");
    assert_eq!(driver.read_config(found[&0x1b] + 4), 20 << 8 | 0b110);
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    driver.write_config(COMMAND, 0);
    let mut before = [0; 4096];
    driver.0.region_read(CONFIG, 0, &mut before).expect("read");
    // All but Device Control, whose highest bit resets the function.
    for at in (0..4096).step_by(4).filter(|&at| at != 0x88) {
        driver.write_config32(at, ALL);
    }
    let mut after = [0; 4096];
    driver.0.region_read(CONFIG, 0, &mut after).expect("read");
    let changed: Vec<usize> = (0..4096).filter(|&at| before[at] != after[at]).collect();
    let expected = [
        4..6,
        0x0c..0x0d,
        0x11..0x14,
        0x15..0x18,
        0x19..0x1c,
        0x3c..0x3d,
        0x44..0x45,
        0x52..0x53,
        0x54..0x5e,
        0x6b..0x6c,
        0x90..0x91,
        0xa8..0xa9,
        0x106..0x108,
        0x114..0x115,
        0x117..0x118,
        0x11c..0x120,
        0x126..0x127,
    ];
    let expected: Vec<usize> = expected.into_iter().flatten().collect();
    assert_eq!(changed, expected);
}

#[test]
fn registers_answer_only_while_memory_space_is_enabled() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    driver.write32(1, 0, 0x1234_5678);
    assert_eq!(driver.read32(1, 0), 0x1234_5678);
    driver.write_config(COMMAND, 0);
    driver.write32(1, 0, 0);
    assert_eq!(driver.read32(1, 0), ALL);
    driver.write_config(COMMAND, MEMORY_AND_MASTER);
    assert_eq!(driver.read32(1, 0), 0x1234_5678);
}

#[test]
fn page_request_registers_follow_the_interface() {
    const CONTROL: u64 = 0x114;
    const STATUS: u64 = 0x116;
    const STOPPED: u16 = 1 << 8;
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    assert_eq!(driver.read_config(STATUS) & STOPPED, STOPPED);
    let capacity = driver.read32(CONFIG, 0x118);
    driver.write_config32(0x11c, capacity);
    assert_eq!(driver.read32(CONFIG, 0x11c), capacity);
    driver.write_config(CONTROL, 1);
    assert_eq!(driver.read_config(CONTROL), 1);
    assert_eq!(driver.read_config(STATUS) & STOPPED, 0);
    driver.write_config(CONTROL, 2);
    assert_eq!(driver.read_config(CONTROL), 0, "RESET reads as 0");
}

/// Rows of a table in the data sheet: offset, and the value after a reset where it is a number.
fn data_sheet(section: &str) -> Vec<(u64, u32)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/soft-endpoint.md");
    let text = std::fs::read_to_string(path).expect("the data sheet");
    let (_, rest) = text.split_once(section).expect("the section");
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let value = |text: &str| match text {
        "~0" => Some(ALL),
        _ => hex(text).or_else(|| text.parse().ok()),
    };
    let section = rest.lines().skip(1).take_while(|l| !l.starts_with("## "));
    section
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, offset, _, _, reset, ..] = cells[..] else {
                return None;
            };
            Some((hex(offset)?.into(), value(reset)?))
        })
        .collect()
}

#[test]
fn the_data_sheet_tells_what_registers_hold_after_a_reset() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    driver.0.reset().expect("reset");
    let config = data_sheet("\n## Configuration space\n");
    assert!(config.len() > 15, "{config:?}");
    for (offset, value) in config {
        let read = match value >> 16 {
            0 => driver.read_config(offset).into(),
            _ => driver.read32(CONFIG, offset),
        };
        assert_eq!(read, value, "{offset:#x}");
    }
    driver.write_config(COMMAND, MEMORY_AND_MASTER);
    let registers = data_sheet("\n## BAR 0: test registers\n");
    assert_eq!(registers.len(), 14, "{registers:?}");
    for (offset, value) in registers {
        assert_eq!(driver.read32(0, offset), value, "{offset:#x}");
    }
}

/// Both ways to reset a function leave it as after power-on.
#[test]
fn a_reset_puts_everything_back() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let mut fresh = [0; 4096];
    driver.write_config(COMMAND, 0);
    driver.0.region_read(CONFIG, 0, &mut fresh).expect("read");
    let flr = |driver: &mut Driver| driver.write_config(0x88, 1 << 15);
    let reset = |driver: &mut Driver| driver.0.reset().expect("reset");
    for how in [&flr as &dyn Fn(&mut Driver), &reset] {
        driver.write_config(COMMAND, MEMORY_AND_MASTER);
        driver.write_config(0x126, 7);
        driver.write_config(0x106, 1 << 15);
        driver.write32(1, 8, 5);
        driver.write32(0, reg::SIZE, 5);
        driver.run(command::RAISE_INTX, 0, 0, 0);
        how(&mut driver);
        let mut config = [0; 4096];
        driver.0.region_read(CONFIG, 0, &mut config).expect("read");
        assert_eq!(config, fresh);
        driver.write_config(COMMAND, MEMORY_AND_MASTER);
        assert_eq!(driver.read32(1, 8), 0);
        assert_eq!(driver.read32(0, reg::SIZE), 0);
        assert_eq!(driver.read32(0, reg::STATUS) & status::IRQ_RAISED, 0);
    }
}
