// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The answer of `translate`: where an access of an endpoint goes, and by which entries.

use serde_json::{Value, json};

use crate::device::status::{MappingStatus, TableStatus};
use crate::host::soft::{Route, TableRoute};
use crate::spec::{Iova, MapFlags};

/// The way of an address.
pub fn describe(route: &Route, iova: Iova) -> Value {
    match route {
        Route::Blocked => json!({"kind": "blocked"}),
        Route::Bypass => json!({"kind": "bypass", "gpa": iova.0}),
        Route::Mappings { domain, mapping } => json!({
            "kind": "paging",
            "domain": domain.0,
            "mapping": mapping.map(MappingStatus::from),
            "gpa": mapping.map(|mapping| mapping.translate(iova).0),
        }),
        Route::Table(route) => describe_table(route, iova),
        Route::Held { domain, table } => json!({
            "kind": "table",
            "domain": domain.0,
            "table": TableStatus::from(&**table),
            "held": true,
        }),
    }
}

fn describe_table(route: &TableRoute, iova: Iova) -> Value {
    let entries = route.steps.iter().map(|step| {
        json!({
            "level": step.level,
            "at": step.entry_at.0,
            // Bits, not a number.
            "entry": format!("{:#x}", step.entry),
        })
    });
    let mut answer = json!({
        "kind": "table",
        "domain": route.domain.0,
        "table": TableStatus::from(&*route.table),
        "entries": entries.collect::<Vec<_>>(),
    });
    let rest = match &route.page {
        Ok(page) => {
            let mut mapping = page.mapping;
            mapping.flags.set(MapFlags::WRITE, route.writes);
            let mut status = MappingStatus::from(mapping);
            if page.exec {
                status.flags.push('x');
            }
            [
                ("mapping", json!(status)),
                ("gpa", json!(mapping.translate(iova).0)),
            ]
        }
        Err(error) => [
            ("mapping", Value::Null),
            ("fault", json!(error.to_string())),
        ],
    };
    for (key, value) in rest {
        answer[key] = value;
    }
    answer
}
