// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! READ, WRITE and COPY through the IOMMU.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use vhost_device_iommu::host::{Answer, Host, PageRequests};
use vhost_device_iommu::spec::{EventFlags, Iova, MapFlags};

use crate::harness::{
    ATS_CONTROL, COMMAND, Fixture, PRI_CONTROL, command, memory_file, reg, status,
};

const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

/// CRC-32 with the reflected polynomial, started with ones and not inverted at the end: bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 }
        })
    })
}

/// A mebibyte at 0x10_0000, mapped page by page to where pages lie in reverse.
fn map_pages(fixture: &Fixture, iova: u64, gpa: u64) {
    for page in 0..257 {
        fixture.map(iova + (page << 12), 0x1000, gpa + ((256 - page) << 12), RW);
    }
}

/// What a driver sees at addresses mapped by [`map_pages`].
fn through(fixture: &Fixture, gpa: u64, offset: u64, length: usize) -> Vec<u8> {
    let pages = (0..257)
        .rev()
        .flat_map(|page| fixture.bytes(gpa + (page << 12), 4096));
    pages.skip(offset as usize).take(length).collect()
}

#[test]
fn every_size_and_alignment_is_read_written_and_copied() {
    let fixture = Fixture::new();
    map_pages(&fixture, 0x10_0000, 0x10_0000);
    map_pages(&fixture, 0x8_0000_0000, 0x40_0000);
    let mut driver = fixture.driver();
    for size in [1, 2, 4095, 4096, 4097, 32 << 10, (32 << 10) + 1, 1 << 20] {
        for offset in [0, 1, 0xfff] {
            let source = 0x10_0000 + offset;
            let destination = 0x8_0000_0000 + (0xfff - offset);
            let length = size as usize;
            let written = driver.run(command::WRITE, 0, source, size);
            assert_eq!(written, status::WRITE_SUCCESS, "{size} at {offset}");
            let bytes = through(&fixture, 0x10_0000, offset, length);
            assert_eq!(driver.read32(0, reg::CHECKSUM), crc(&bytes));
            driver.write32(0, reg::CHECKSUM, crc(&bytes));
            let read = driver.run(command::READ, source, 0, size);
            assert_eq!(read, status::READ_SUCCESS, "{size} at {offset}");
            let copied = driver.run(command::COPY, source, destination, size);
            assert_eq!(copied, status::COPY_SUCCESS, "{size} at {offset}");
            let copy = through(&fixture, 0x40_0000, 0xfff - offset, length);
            assert!(copy == bytes, "{size} at {offset}");
        }
    }
    assert_eq!(fixture.faults(), []);
}

#[test]
fn a_wrong_checksum_fails_without_an_address_to_blame() {
    let fixture = Fixture::new();
    fixture.map(0, 0x1000, 0x5000, RW);
    let mut driver = fixture.driver();
    driver.write32(0, reg::CHECKSUM, !crc(&fixture.bytes(0x5000, 64)));
    assert_eq!(driver.run(command::READ, 0, 0, 64), status::READ_FAIL);
    assert_eq!(fixture.faults(), []);
}

#[test]
fn what_is_not_mapped_fails_and_is_reported() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0x1000, 0x5000, MapFlags::READ);
    fixture.map(0x4000, 0x1000, 0x6000, RW);
    let mut driver = fixture.driver();
    let source = status::READ_FAIL | status::SRC_ADDR_INVALID;
    assert_eq!(driver.run(command::READ, 0x1ff0, 0, 32), source);
    let destination = status::WRITE_FAIL | status::DST_ADDR_INVALID;
    assert_eq!(driver.run(command::WRITE, 0, 0x1000, 4), destination);
    let copy = driver.run(command::COPY, 0x2000, 0x4000, 4);
    assert_eq!(copy, status::COPY_FAIL | status::SRC_ADDR_INVALID);
    let copy = driver.run(command::COPY, 0x1000, 0x3000, 4);
    assert_eq!(copy, status::COPY_FAIL | status::DST_ADDR_INVALID);
    let wraps = driver.run(command::READ, u64::MAX, 0, 2);
    assert_eq!(wraps, source);
    let reported = [0x2000, 0x1000, 0x2000, 0x3000].map(Iova);
    assert_eq!(fixture.faults(), reported);
    assert_eq!(fixture.bytes(0x5000, 4), [5; 4]);
}

#[test]
fn a_copy_that_meets_a_gap_has_moved_what_is_before_it() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0x1000, 0x5000, RW);
    fixture.map(0x8000, 0x2000, 0x10_0000, RW);
    let mut driver = fixture.driver();
    let failed = driver.run(command::COPY, 0x1800, 0x8000, 0x1000);
    assert_eq!(failed, status::COPY_FAIL | status::SRC_ADDR_INVALID);
    assert_eq!(fixture.faults(), [Iova(0x2000)]);
    assert_eq!(fixture.bytes(0x10_0000, 0x800), [5; 0x800]);
    assert_eq!(fixture.bytes(0x10_0800, 0x800), [0; 0x800]);
    // And the other way round, with the gap where it is written.
    let failed = driver.run(command::COPY, 0x8000, 0x1800, 0x1000);
    assert_eq!(failed, status::COPY_FAIL | status::DST_ADDR_INVALID);
    assert_eq!(fixture.faults(), [Iova(0x2000)]);
}

#[test]
fn there_is_no_dma_without_bus_mastering() {
    let fixture = Fixture::new();
    fixture.map(0, 0x1000, 0x5000, RW);
    let mut driver = fixture.driver();
    driver.write_config(COMMAND, 2);
    let failed = driver.run(command::WRITE, 0, 0, 4);
    assert_eq!(failed, status::WRITE_FAIL | status::DST_ADDR_INVALID);
    assert_eq!(fixture.bytes(0x5000, 4), [5; 4]);
}

/// What the front-end shares over vfio-user is not a way around the IOMMU.
#[test]
fn memory_shared_over_vfio_user_is_not_used() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let file = memory_file();
    file.set_len(0x1000).expect("length");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    driver.0.dma_map(0, 0x1000, 0x1000, fd).expect("map");
    let failed = driver.run(command::READ, 0x1000, 0, 4);
    assert_eq!(failed, status::READ_FAIL | status::SRC_ADDR_INVALID);
    driver.0.dma_unmap(0x1000, 0x1000).expect("unmap");
}

#[test]
fn a_transfer_asks_for_missing_pages_and_goes_on_when_they_are_there() {
    let fixture = Fixture::new();
    fixture.attach(PageRequests::Reported);
    fixture.map(0x1000, 0x1000, 0x5000, RW);
    let mut driver = fixture.driver();
    driver.enable_page_requests();
    driver.start(command::COPY, 0x1800, 0x3000, 0x1000);
    for (at, kinds, gpa) in [
        (0x2000, EventFlags::READ, 0x6000),
        (0x3000, EventFlags::WRITE, 0x7000),
    ] {
        let group = fixture.group();
        let [page] = group.pages[..] else {
            panic!("{group:?}");
        };
        assert_eq!((page.address, page.access), (Iova(at), kinds));
        fixture.map(at, 0x1000, gpa, RW);
        let answered = fixture.host.respond(group.cookie, Answer::Success);
        answered.expect("answer");
    }
    assert_eq!(driver.finish(), status::COPY_SUCCESS);
    let copied = fixture.bytes(0x7000, 0x1000);
    assert_eq!(copied, [[5; 0x800], [6; 0x800]].concat());
    assert_eq!(fixture.faults(), []);
}

/// The IOMMU's driver has attached the endpoint with page requests, and configuration space does not permit them.
#[test]
fn without_pri_or_ats_a_transfer_asks_for_nothing_and_fails() {
    let fixture = Fixture::new();
    fixture.attach(PageRequests::Reported);
    let mut driver = fixture.driver();
    for (what, register) in [("PRI", PRI_CONTROL), ("ATS", ATS_CONTROL)] {
        driver.enable_page_requests();
        driver.write_config(register, 0);
        let failed = driver.run(command::READ, 0x1000, 0, 4);
        let invalid = status::READ_FAIL | status::SRC_ADDR_INVALID;
        assert_eq!(failed, invalid, "{what} is disabled");
        let failed = driver.run(command::WRITE, 0, 0x2000, 4);
        let invalid = status::WRITE_FAIL | status::DST_ADDR_INVALID;
        assert_eq!(failed, invalid, "{what} is disabled");
        let failed = driver.run(command::COPY, 0x3000, 0x4000, 4);
        let invalid = status::COPY_FAIL | status::SRC_ADDR_INVALID;
        assert_eq!(failed, invalid, "{what} is disabled");
        // Aborted, and reported: no page request among them.
        assert_eq!(
            fixture.faults(),
            [0x1000, 0x2000, 0x3000].map(Iova),
            "{what}"
        );
    }
}

/// With ATS a translation is kept until the IOMMU takes it away, without it the function keeps none.
#[test]
fn a_transfer_without_ats_uses_no_translation_of_before() {
    let fixture = Fixture::new();
    fixture.map(0x1000, 0x1000, 0x5000, RW);
    let mut driver = fixture.driver();
    driver.write_config(ATS_CONTROL, 1 << 15);
    driver.write32(0, reg::CHECKSUM, crc(&[5; 4]));
    assert_eq!(
        driver.run(command::READ, 0x1000, 0, 4),
        status::READ_SUCCESS
    );
    // The table alone: the IOMMU's driver has not invalidated yet.
    fixture.forget(0x1000, 0x1000);
    assert_eq!(
        driver.run(command::READ, 0x1000, 0, 4),
        status::READ_SUCCESS
    );
    driver.write_config(ATS_CONTROL, 0);
    let invalid = status::READ_FAIL | status::SRC_ADDR_INVALID;
    assert_eq!(driver.run(command::READ, 0x1000, 0, 4), invalid);
    driver.write_config(ATS_CONTROL, 1 << 15);
    assert_eq!(driver.run(command::READ, 0x1000, 0, 4), invalid);
}

#[test]
fn registers_answer_while_a_transfer_waits_for_the_guest_and_a_reset_ends_it() {
    let fixture = Fixture::new();
    fixture.attach(PageRequests::Reported);
    let mut driver = fixture.driver();
    driver.enable_page_requests();
    driver.start(command::WRITE, 0, 0x1000, 4);
    fixture.group();
    assert_eq!(driver.read32(0, reg::STATUS), 0, "not done");
    assert_eq!(driver.read32(0, reg::SIZE), 4);
    // No answer ever comes; the reset must not wait for one.
    driver.0.reset().expect("reset");
    fixture.map(0x1000, 0x1000, 0x5000, RW);
    driver.write_config(COMMAND, 6);
    assert_eq!(
        driver.run(command::WRITE, 0, 0x1004, 4),
        status::WRITE_SUCCESS
    );
    assert_eq!(
        fixture.bytes(0x5000, 4),
        [5; 4],
        "the one that was stopped wrote nothing"
    );
}

#[test]
fn resets_during_transfers_leave_no_dma_behind() {
    let fixture = Fixture::new();
    map_pages(&fixture, 0x10_0000, 0x10_0000);
    let mut driver = fixture.driver();
    for _ in 0..20 {
        driver.write_config(COMMAND, 6);
        driver.start(command::WRITE, 0, 0x10_0000, 1 << 20);
        driver.0.reset().expect("reset");
        let before = through(&fixture, 0x10_0000, 0, 1 << 20);
        let after = through(&fixture, 0x10_0000, 0, 1 << 20);
        assert!(before == after);
    }
}

/// Moving a BAR, and turning its decoding off, is nothing to a transfer.
#[test]
fn bars_move_during_a_transfer() {
    let fixture = Fixture::new();
    map_pages(&fixture, 0x10_0000, 0x10_0000);
    let mut driver = fixture.driver();
    driver.start(command::WRITE, 0, 0x10_0000, 1 << 20);
    for address in [u32::MAX, 0, 0xfe00_0000, 0xfe01_0000] {
        driver.write_config(COMMAND, 4);
        driver.write_config32(0x10, address);
        driver.write_config(COMMAND, 6);
    }
    assert_eq!(driver.finish(), status::WRITE_SUCCESS);
    let bytes = through(&fixture, 0x10_0000, 0, 1 << 20);
    assert_eq!(driver.read32(0, reg::CHECKSUM), crc(&bytes));
}

#[test]
fn the_end_of_a_function_does_not_wait_for_the_guest() {
    let mut fixture = Fixture::new();
    fixture.attach(PageRequests::Reported);
    let mut driver = fixture.driver();
    driver.enable_page_requests();
    driver.start(command::READ, 0x1000, 0, 4);
    fixture.group();
    let endpoint = fixture.endpoint.take();
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        drop(endpoint);
        done.send(()).expect("the test waits");
    });
    finished
        .recv_timeout(Duration::from_secs(20))
        .expect("it ends");
    assert!(!fixture.path.exists());
}
