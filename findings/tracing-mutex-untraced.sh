#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Software:  crate tracing-mutex 0.3.3 (bertptrs/tracing-mutex), with its feature parking_lot
# Behaviour: The crate's locks panic when two of them are taken in both orders. The crate has two modules with a Mutex for
#            parking_lot, `parkinglot` and `parking_lot`. `parkinglot` has the traced locks. `parking_lot` is the crate
#            parking_lot itself: its Mutex has the same methods and compiles in the same places, and is not traced. The feature
#            for both was renamed from `parkinglot` to `parking_lot`; the module with the traced locks kept its name.
# Seen:      One thread takes two locks in one order, and then in the other. With `tracing_mutex::parkinglot::Mutex` the second
#            order panics. With `tracing_mutex::parking_lot::Mutex` it does not. The compiler warns that this path is deprecated,
#            and does not say that its locks are not traced.
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
