// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx, MSI and MSI-X.

use crate::harness::{
    COMMAND, DATA_NONE, Driver, Fixture, INTX, MSI, MSIX, MSIX_CONTROL, TRIGGER, UNMASK, command,
    reg, signals,
};

const MSI_CONTROL: u64 = 0x52;
const MSIX_ENABLE: u16 = 1 << 15;

fn raise(driver: &mut Driver, command: u32, kind: u32, number: u32) {
    driver.write32(0, reg::IRQ_TYPE, kind);
    driver.write32(0, reg::IRQ_NUMBER, number);
    driver.write32(0, reg::STATUS, 0);
    driver.write32(0, reg::COMMAND, command);
    driver.finish();
}

/// What only vector `number`, counted from 1, looks like.
fn only(number: usize, of: usize) -> Vec<u64> {
    (1..=of).map(|n| u64::from(n == number)).collect()
}

#[test]
fn every_vector_of_msi_and_msix_is_signalled_by_its_number() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    for (index, raising, count, control, enable) in [
        (MSI, command::RAISE_MSI, 32, MSI_CONTROL, 1 | 5 << 4),
        (MSIX, command::RAISE_MSIX, 32, MSIX_CONTROL, MSIX_ENABLE),
    ] {
        assert_eq!(driver.0.get_irq_info(index).expect("info").count, count);
        let count = count as usize;
        let events = driver.set_triggers(index, count);
        driver.write_config(control, enable);
        for number in 1..=count {
            raise(&mut driver, raising, index, number as u32);
            assert_eq!(signals(&events), only(number, count));
        }
        for number in [0, count as u32 + 1, u32::MAX] {
            raise(&mut driver, raising, index, number);
            assert_eq!(signals(&events), only(0, count), "{number}");
        }
        driver
            .0
            .set_irqs(index, TRIGGER | DATA_NONE, 0, 0, &[])
            .expect("disable");
        driver.write_config(control, 0);
    }
}

#[test]
fn the_driver_may_enable_fewer_messages_than_there_are() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let events = driver.set_triggers(MSI, 4);
    driver.write_config(MSI_CONTROL, 1 | 2 << 4);
    raise(&mut driver, command::RAISE_MSI, MSI, 4);
    assert_eq!(signals(&events), only(4, 4));
    driver.write_config(MSI_CONTROL, 1 | 1 << 4);
    raise(&mut driver, command::RAISE_MSI, MSI, 4);
    assert_eq!(signals(&events), only(0, 4));
}

#[test]
fn an_interrupt_of_a_kind_that_is_not_enabled_is_none() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let wire = driver.set_triggers(INTX, 1);
    let events = driver.set_triggers(MSIX, 2);
    raise(&mut driver, command::RAISE_MSIX, MSIX, 1);
    assert_eq!(signals(&events), [0, 0]);
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    assert_eq!(signals(&wire), [0]);
}

#[test]
fn messages_need_bus_mastering_and_the_wire_does_not() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let wire = driver.set_triggers(INTX, 1);
    let events = driver.set_triggers(MSIX, 1);
    driver.write_config(COMMAND, 2);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    assert_eq!(signals(&wire), [1]);
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE);
    raise(&mut driver, command::RAISE_MSIX, MSIX, 1);
    assert_eq!(signals(&events), [0]);
}

#[test]
fn the_wire_is_an_edge_until_it_is_unmasked_and_loses_none() {
    const STATUS: u64 = 0x06;
    const INTERRUPT: u16 = 1 << 3;
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let wire = driver.set_triggers(INTX, 1);
    let unmask = |driver: &mut Driver| {
        driver
            .0
            .set_irqs(INTX, UNMASK | DATA_NONE, 0, 1, &[])
            .expect("unmask");
    };
    assert_eq!(driver.read_config(STATUS) & INTERRUPT, 0);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    assert_eq!(signals(&wire), [1]);
    assert_eq!(driver.read_config(STATUS) & INTERRUPT, INTERRUPT);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    assert_eq!(signals(&wire), [0], "it is still asserted");
    unmask(&mut driver);
    assert_eq!(signals(&wire), [1], "one for all that came since");
    unmask(&mut driver);
    assert_eq!(signals(&wire), [0]);
    assert_eq!(driver.read_config(STATUS) & INTERRUPT, 0);
}

#[test]
fn interrupt_disable_keeps_the_wire_back() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let wire = driver.set_triggers(INTX, 1);
    driver.write_config(COMMAND, 6 | 1 << 10);
    raise(&mut driver, command::RAISE_INTX, INTX, 0);
    assert_eq!(signals(&wire), [0]);
    driver.write_config(COMMAND, 6);
    assert_eq!(signals(&wire), [1]);
}

/// QEMU takes descriptors away and gives new ones whenever a driver enables one more vector.
#[test]
fn a_message_raised_without_a_descriptor_is_pending_until_there_is_one() {
    const PENDING: u64 = 0x3000;
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE);
    raise(&mut driver, command::RAISE_MSIX, MSIX, 3);
    assert_eq!(driver.read32(0, PENDING), 1 << 2);
    let events = driver.set_triggers(MSIX, 4);
    assert_eq!(signals(&events), only(3, 4));
    assert_eq!(driver.read32(0, PENDING), 0);
}

#[test]
fn a_masked_function_keeps_its_messages_and_leaves_the_wire_alone() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let wire = driver.set_triggers(INTX, 1);
    let events = driver.set_triggers(MSIX, 2);
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE | 1 << 14);
    raise(&mut driver, command::RAISE_MSIX, MSIX, 2);
    assert_eq!(signals(&events), [0, 0]);
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE);
    assert_eq!(signals(&events), [0, 1]);
    assert_eq!(signals(&wire), [0]);
}

#[test]
fn the_doorbell_interrupts_while_it_is_armed() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let events = driver.set_triggers(MSIX, 1);
    driver.write_config(MSIX_CONTROL, MSIX_ENABLE);
    driver.write32(0, reg::IRQ_TYPE, MSIX);
    driver.write32(0, reg::IRQ_NUMBER, 1);
    assert_eq!(driver.read32(0, 0x34), u32::MAX, "no BAR");
    driver.write32(0, reg::COMMAND, 1 << 6);
    assert_eq!(driver.finish(), 1 << 10);
    assert_eq!(signals(&events), [1]);
    let bar = driver.read32(0, 0x34);
    let offset = driver.read32(0, 0x38);
    let data = driver.read32(0, 0x3c);
    driver.write32(0, reg::STATUS, 0);
    driver.write32(bar, offset.into(), data);
    assert_eq!(driver.finish(), 1 << 9);
    assert_eq!(signals(&events), [1]);
    driver.write32(0, reg::COMMAND, 1 << 7);
    assert_eq!(driver.finish(), 1 << 12);
    assert_eq!(driver.read32(0, 0x34), u32::MAX);
}
