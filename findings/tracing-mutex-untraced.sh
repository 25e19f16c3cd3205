#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate tracing-mutex 0.3.3 (bertptrs/tracing-mutex), with its feature parking_lot
# Behaviour: The crate's locks notice when two of them are taken in both orders, and panic. It has two modules with a Mutex
#            for parking_lot: `parkinglot` and `parking_lot`. The feature was renamed from the first to the second, and the
#            compiler's warning for the old feature says so; the module was not renamed. `parking_lot` is parking_lot
#            itself: its Mutex has the same methods, compiles in every place, and notices nothing.
# Seen:      Two locks are taken in one order and then in the other, on one thread. With `tracing_mutex::parkinglot::Mutex`
#            the second order panics. With `tracing_mutex::parking_lot::Mutex` it does not; the compiler says that the path
#            is deprecated, not that the locks are others.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir src

cat >Cargo.toml <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
tracing-mutex = { version = "=0.3.3", features = ["parking_lot"] }
END

cat >src/main.rs <<'END'
use std::panic::catch_unwind;

/// Whether taking two locks in both orders is noticed.
macro_rules! noticed {
    ($Mutex:ty) => {
        catch_unwind(|| {
            let (one, other) = (<$Mutex>::new(1), <$Mutex>::new(2));
            let outer = one.lock();
            drop(other.lock());
            drop(outer);
            let outer = other.lock();
            drop(one.lock());
            drop(outer);
        })
        .is_err()
    };
}

fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    println!("parkinglot: {}", noticed!(tracing_mutex::parkinglot::Mutex<u8>));
    #[allow(deprecated)]
    let untraced = noticed!(tracing_mutex::parking_lot::Mutex<u8>);
    println!("parking_lot: {untraced}");
}
END

cat >expected <<'END'
parkinglot: true
parking_lot: false
END

cargo build --quiet
timeout 60 target/debug/finding >seen
if ! diff expected seen; then
    echo "CHANGED: the two modules notice other things" >&2
    exit 1
fi
echo "As described: the Mutex of module parking_lot notices nothing"
