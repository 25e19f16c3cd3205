// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The man page tells the same story as `--help`.

use std::collections::BTreeSet;

use clap::{ArgAction, CommandFactory};
use vhost_device_iommu::cli::args::Args;

/// The man page as a reader sees it, roughly: without escapes and macros.
fn text() -> String {
    include_str!("../docs/vhost-device-iommu.1")
        .replace("\\-", "-")
        .replace("\\e", "\\")
        .replace("\\fB", "")
        .replace("\\fI", "")
        .replace("\\fR", "")
        .replace('"', "")
}

/// Every `--option` in a text.
fn options(text: &str) -> BTreeSet<String> {
    text.split("--")
        .skip(1)
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
            rest[..end.unwrap_or(rest.len())].to_owned()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn both_name_the_same_options() {
    let mut command = Args::command();
    command.build();
    let mut defined = BTreeSet::new();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let long = command.get_arguments().filter_map(clap::Arg::get_long);
        defined.extend(long.map(str::to_owned));
    }
    assert_eq!(options(&text()), defined);
}

#[test]
fn both_name_the_same_defaults() {
    let command = Args::command();
    let page = text();
    for argument in command.get_arguments() {
        let Some(default) = argument.get_default_values().first() else {
            continue;
        };
        if !matches!(argument.get_action(), ArgAction::Set) {
            continue;
        }
        let name = argument.get_long().unwrap_or_default();
        let entry = page
            .split("\n.TP\n")
            .find(|entry| {
                entry
                    .lines()
                    .next()
                    .is_some_and(|head| options(head).contains(name))
            })
            .unwrap_or_else(|| panic!("--{name} has no entry"));
        let told = format!("Default: {}.", default.to_string_lossy());
        assert!(entry.contains(&told), "--{name}: {told}");
    }
}

#[test]
fn both_name_the_same_commands() {
    let mut command = Args::command();
    let ctl = command
        .find_subcommand_mut("ctl")
        .expect("ctl")
        .render_long_help()
        .to_string();
    let page = text();
    for name in [
        "status",
        "counters",
        "mappings",
        "endpoint-add",
        "endpoint-remove",
        "dma-read",
        "dma-write",
        "page-request",
    ] {
        assert!(ctl.contains(&format!("\n  {name}")), "{name} in the help");
        let heads = [
            format!("\n.B {name}"),
            format!("\n.BR {name}"),
            format!("\n.BI {name}"),
        ];
        assert!(heads.iter().any(|head| page.contains(head)), "{name}");
    }
}
