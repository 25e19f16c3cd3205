// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The man page tells the same story as `--help`: its options are made from the command line. To make them again:
//! `UPDATE_MAN_PAGE=1 cargo test --test man_page`.

use std::{env, fs};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use vhost_device_iommu::cli::args::Args;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/vhost-device-iommu.1");

/// What is made: behind these words, the command whose options it has.
const BEGIN: &str = ".\\\" Options, made by tests/man_page.rs:";
const PROGRAM: &str = "vhost-device-iommu";
const END: &str = ".\\\" End of options.";

fn page() -> String {
    fs::read_to_string(PAGE).expect("the man page")
}

/// The options of a command as roff.
fn options(name: &str) -> String {
    let mut program = Args::command();
    program.build();
    let command: Command = match name {
        PROGRAM => program,
        name => program.find_subcommand(name).expect("a command").clone(),
    };
    let headings: Vec<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_help_heading().map(str::to_owned))
        .collect();
    let mut roff = Vec::new();
    Man::new(command)
        .render_options_section(&mut roff)
        .expect("roff");
    let roff = String::from_utf8(roff).expect("text");
    let (_, options) = roff.split_once(".SH OPTIONS\n").expect("a section");
    // The library defines this string for an apostrophe, in front of all.
    let mut options = options.replace("\\*(Aq", "\\(aq");
    // Groups are inside of a section here.
    for heading in headings {
        let theirs = format!(".SH {}\n", heading.to_uppercase());
        options = options.replace(&theirs, &format!(".SS {heading}\n"));
    }
    options
}

/// The page with its options made again.
fn made(page: &str) -> String {
    let begin = format!("{BEGIN} ");
    let mut parts = page.split_inclusive(&begin);
    let mut made = parts.next().expect("a beginning").to_owned();
    for part in parts {
        let (name, rest) = part.split_once('\n').expect("a line");
        let (_, rest) = rest.split_once(END).expect("an end");
        made += &format!("{name}\n{}{END}{rest}", options(name.trim()));
    }
    made
}

#[test]
fn its_options_are_those_of_the_command_line() {
    let page = page();
    let made = made(&page);
    if env::var_os("UPDATE_MAN_PAGE").is_some() {
        fs::write(PAGE, made).expect("the man page");
        return;
    }
    assert!(
        page == made,
        "the man page is out of date: run UPDATE_MAN_PAGE=1 cargo test --test man_page"
    );
}

#[test]
fn every_command_with_options_has_a_section() {
    let page = page();
    let program = Args::command();
    let with_options = program
        .get_subcommands()
        .filter(|command| command.get_arguments().any(|a| a.get_long().is_some()));
    for name in with_options.map(Command::get_name).chain([PROGRAM]) {
        assert!(page.contains(&format!("{BEGIN} {name}\n")), "{name:?}");
    }
}

#[test]
fn it_names_the_commands_of_the_control_socket() {
    let mut program = Args::command();
    let ctl = program
        .find_subcommand_mut("ctl")
        .expect("ctl")
        .render_long_help()
        .to_string();
    let page = page().replace("\\-", "-");
    let commands = ctl.split_once("Commands:\n").expect("commands").1;
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() >= 9, "{commands:?}");
    for name in commands {
        let heads = ["B", "BR", "BI"].map(|font| format!("\n.{font} {name}"));
        let quoted = format!("\n.BI \"{name} ");
        let found = heads.iter().any(|head| page.contains(head)) || page.contains(&quoted);
        assert!(found, "{name}");
    }
}

#[test]
fn it_has_the_examples_of_the_help() {
    let page = page().replace("\\-", "-").replace("\\e", "\\");
    let mut program = Args::command();
    let help = program.render_long_help().to_string();
    let examples = help.split_once("Examples:\n").expect("examples").1;
    for line in examples.lines() {
        let line = line.strip_prefix("    ").unwrap_or(line);
        if line.starts_with("vhost-device-iommu") || line.starts_with("qemu") {
            assert!(page.contains(&format!("\n{line}\n")), "{line}");
        }
    }
}
