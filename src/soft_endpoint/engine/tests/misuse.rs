// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that do what they should not.

use super::*;

fn nop() -> Descriptor {
    descriptor(Operation::Nop, Flags::empty(), 0, 0)
}

#[test]
fn what_configuration_space_disables_is_not_done() {
    let pasid = |flags| Descriptor {
        pasid: 7.into(),
        ..descriptor(Operation::Read, flags | Flags::PASID, 0x8000, 16)
    };
    let ask = descriptor(Operation::PageRequest, Flags::FOR_READ, 0x8000, 1);
    let cases = [
        (
            Enabled::PASID,
            pasid(Flags::empty()),
            Outcome::PasidDisabled,
        ),
        (Enabled::EXEC, pasid(Flags::EXEC), Outcome::PasidDisabled),
        (
            Enabled::PRIVILEGED,
            pasid(Flags::PRIVILEGED),
            Outcome::PasidDisabled,
        ),
    ];
    for (disabled, descriptor, outcome) in cases {
        let f = Fixture::new();
        f.attach(Some(7), PageRequests::Unwanted);
        assert_eq!(f.run(&[descriptor]).status.get(), status(Outcome::Done));
        f.disable(disabled);
        let refused = f.run(&[descriptor]);
        assert_eq!(refused.status.get(), status(outcome), "{disabled:?}");
        assert_eq!(f.events(), []);
    }
    let f = Fixture::new();
    f.function.page_requests.set_control(pri::Control::empty());
    let refused = f.run(&[ask]);
    assert_eq!(refused.status.get(), status(Outcome::PageRequestsDisabled));
    // Not even the descriptor is fetched.
    f.disable(Enabled::BUS_MASTER);
    f.start(0, CHAIN);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::BusMaster));
    assert_eq!(f.events(), []);
}

#[test]
fn without_page_requests_an_access_that_finds_nothing_is_a_fault() {
    let f = Fixture::new();
    // Mapped for reading only, and not mapped.
    f.map(0x40_0000, 0x40_0fff, DATA, MapFlags::READ);
    let denied = f.run(&[copy(Flags::empty(), 0x8000, 0x40_0000, 16)]);
    assert_eq!(denied.status.get(), status(Outcome::Permission));
    let missing = f.run(&[copy(Flags::empty(), 0x40_0ff0, 0x8000, 0x20)]);
    assert_eq!(missing.status.get(), status(Outcome::Translation));
    assert_eq!(missing.address.get(), 0x40_1000);
    let faults = [(Reason::Mapping, 0x40_0000), (Reason::Mapping, 0x40_1000)];
    assert_eq!(f.faults(), faults);
    f.map(0x50_0000, 0x50_0fff, RAM, RW);
    let nowhere = f.run(&[copy(Flags::empty(), 0x50_0000, 0x8000, 1)]);
    assert_eq!(nowhere.status.get(), status(Outcome::NoMemory));
    assert_eq!(f.faults(), [(Reason::Unknown, 0x50_0000)]);
}

#[test]
fn descriptors_that_are_not_mapped_are_a_fault_and_no_more() {
    let f = Fixture::new();
    f.start(0, 0x40_0000);
    assert_eq!(f.interrupt(), 0);
    assert_eq!(f.outcome(0), status(Outcome::Translation));
    assert_eq!(f.register64(0, engine::FAULT), 0x40_0000);
    assert_eq!(f.faults(), [(Reason::Mapping, 0x40_0000)]);
    // The end of the chain is not mapped, or not aligned.
    let lost = Descriptor {
        next: 0x40_0040.into(),
        ..nop()
    };
    f.store(CHAIN, &[lost]);
    f.start(0, CHAIN);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::Translation));
    assert_eq!(f.faults(), [(Reason::Mapping, 0x40_0040)]);
    f.start(0, CHAIN + 8);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::BadDescriptor));
    f.start(0, !15);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::BadDescriptor));
}

#[test]
fn a_chain_in_a_loop_ends_at_the_limit_and_a_reset_ends_it_any_time() {
    let f = Fixture::new();
    let round = Descriptor {
        next: CHAIN.into(),
        ..nop()
    };
    f.store(CHAIN, &[round]);
    f.start(0, CHAIN);
    f.interrupt();
    assert_eq!(f.outcome(0), status(Outcome::Limit));
    assert_eq!(f.register(0, engine::COMPLETED), engine::LIMIT_RESET);
    // Without a limit it goes on for ever.
    f.set(0, engine::LIMIT, 0);
    f.start(0, CHAIN);
    while f.register(0, engine::COMPLETED) <= 2 * engine::LIMIT_RESET {
        std::thread::yield_now();
    }
    f.set(0, engine::CONTROL, 1);
    assert_eq!(f.register(0, engine::STATUS), 0);
    assert_eq!(f.register(0, engine::LIMIT), engine::LIMIT_RESET);
    assert!(f.interrupts.try_recv().is_err());
    // Nothing is written after the reset.
    f.fill(CHAIN, 64, 0);
    assert_eq!(f.bytes(CHAIN, 64), pattern(64, 0));
}

#[test]
fn a_reset_during_dma_ends_it_before_it_returns() {
    let f = Fixture::new();
    let endless = Descriptor {
        next: CHAIN.into(),
        ..copy(Flags::empty(), 0x8000, 0xa000, 0x2000)
    };
    for _ in 0..20 {
        f.store(CHAIN, &[endless]);
        f.start(0, CHAIN);
        while f.register64(0, engine::BYTES) == 0 {
            std::thread::yield_now();
        }
        f.block.reset();
        f.fill(0xa000, 0x2000, 0x55);
        std::thread::yield_now();
        assert_eq!(f.bytes(0xa000, 0x2000), pattern(0x2000, 0x55));
    }
}

#[test]
fn bad_descriptors_are_said_to_be_so() {
    let good = copy(Flags::empty(), 0x8000, 0x9000, 16);
    let read = descriptor(Operation::Read, Flags::empty(), 0x8000, 16);
    let bad = [
        Descriptor {
            operation: 8,
            ..good
        },
        Descriptor {
            flags: 0x100.into(),
            ..good
        },
        Descriptor { group: 65, ..good },
        Descriptor {
            pieces: 4097.into(),
            ..good
        },
        Descriptor {
            pieces: 1.into(),
            address: 0x8001.into(),
            ..good
        },
        Descriptor {
            other: 0xfff8.into(),
            ..read
        },
        Descriptor {
            other: u64::MAX.into(),
            ..read
        },
        descriptor(Operation::Read, Flags::EXEC, 0x8000, 16),
        descriptor(Operation::Copy, Flags::EXEC | Flags::PASID, 0x8000, 16),
        descriptor(Operation::PageRequest, Flags::empty(), 0x8000, 16),
        descriptor(Operation::Read, Flags::empty(), u64::MAX - 3, 16),
    ];
    let f = Fixture::new();
    for (index, descriptor) in bad.into_iter().enumerate() {
        let refused = f.run(&[descriptor]);
        let expected = status(Outcome::BadDescriptor);
        assert_eq!(refused.status.get(), expected, "{index}");
    }
    assert_eq!(f.run(&[good]).status.get(), status(Outcome::Done));
    assert_eq!(f.events(), []);
}

#[test]
fn writes_of_other_widths_and_to_other_places_are_ignored() {
    let f = Fixture::new();
    let head = at(0, engine::HEAD);
    for data in [&[1][..], &[1, 2], &[1; 3], &[1; 16]] {
        f.block.write(head, data);
    }
    f.block.write(head + 2, &[1; 4]);
    f.block.write(global::ID, &[1; 4]);
    f.block.write(at(registers::ENGINES, 0), &[1; 8]);
    f.block.write(u64::MAX - 3, &[1; 8]);
    assert_eq!(f.register64(0, engine::HEAD), 0);
    f.block.write(head, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(f.register64(0, engine::HEAD), 0x0807_0605_0403_0201);
}

#[test]
fn a_doorbell_of_a_busy_engine_changes_nothing() {
    let f = Fixture::new();
    f.store(CHAIN, &[copy(Flags::PAGE_REQUESTS, 0x40_0000, 0x8000, 8)]);
    f.start(0, CHAIN);
    let group = f.group();
    f.set(0, engine::DOORBELL, 1);
    f.answer(&group, Answer::Invalid);
    f.interrupt();
    assert_eq!(f.register(0, engine::COMPLETED), 1);
    assert_eq!(f.register(0, engine::GROUPS), 1);
    assert!(f.interrupts.try_recv().is_err());
}

#[test]
fn the_end_of_the_function_ends_chains_whatever_they_do() {
    let f = Fixture::new();
    let round = Descriptor {
        next: CHAIN.into(),
        ..nop()
    };
    f.store(CHAIN, &[round]);
    f.set(0, engine::LIMIT, 0);
    f.start(0, CHAIN);
    let waits = copy(Flags::PAGE_REQUESTS, 0x40_0000, 0x8000, 8);
    f.store(CHAIN + 64, &[waits]);
    f.start(1, CHAIN + 64);
    let group = f.group();
    let Fixture {
        block,
        host,
        interrupts,
        ..
    } = f;
    drop(block);
    // The answer is nobody's, and nobody is left to interrupt.
    host.respond(group.cookie, Answer::Success).expect("answer");
    assert!(interrupts.try_recv().is_err());
}
