// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands that `--help` and README print start as printed: each is pasted into a shell. Only `/run/`, where tests
//! have no business, is another directory. QEMU's is pasted by `tests/functional/test_examples.py`.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{env, fs};

use clap::{CommandFactory, Parser};
use common::{Guest, GuestOptions, wait_until};
use tempfile::TempDir;
use vhost_device_iommu::cli::args::Args;

const PROGRAM: &str = "vhost-device-iommu";

/// The help of the program or of one of its commands.
fn help(name: &str) -> String {
    let mut program = Args::command();
    program.build();
    match name {
        "" => program.render_long_help(),
        name => program
            .find_subcommand_mut(name)
            .expect("a command")
            .render_long_help(),
    }
    .to_string()
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README")
}

/// The commands of a text, each with all its lines: those of our program and of QEMU that begin a line.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let begins = |program: &str| line.trim_start().starts_with(program);
        if !begins(&format!("{PROGRAM} ")) && !begins("qemu-system-") {
            continue;
        }
        let mut command = line.trim_start().to_owned();
        while command.ends_with('\\') {
            command += "\n";
            command += lines.next().expect("a line that goes on");
        }
        commands.push(command);
    }
    commands
}

/// Those of the examples in the help.
fn examples(name: &str) -> Vec<String> {
    let help = help(name);
    let (_, examples) = help.split_once("Examples:\n").expect("examples");
    for line in examples.lines() {
        assert!(line.len() <= 80, "{line}");
        assert!(line.len() <= 76 || !line.starts_with("    "), "{line}");
    }
    commands(examples)
}

/// A directory that is `/run` and the working directory, and the program in the search path.
struct Shell(TempDir);

impl Shell {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, text: &str) -> Command {
        let run = format!("{}/", self.0.path().display());
        let program = Path::new(env!("CARGO_BIN_EXE_vhost-device-iommu"));
        let programs = program.parent().expect("directory");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(text.replace("/run/", &run))
            .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
            .current_dir(self.0.path())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, text: &str) -> Output {
        self.command(text).output().expect("a shell")
    }

    /// Starts a program that serves, and waits until it does.
    fn serve(&self, text: &str) -> Serving {
        let text = text.trim_end_matches(" &");
        let command = format!("exec {text}");
        let child = self.command(&command).spawn().expect("a shell");
        let serving = Serving(child);
        wait_until("the program to listen", || self.path("iommu.sock").exists());
        serving
    }
}

/// A program that serves; it is ended when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_serving(command: &str) -> bool {
    command.starts_with(&format!("{PROGRAM} --"))
}

/// Pastes all commands of a text but QEMU's, in order. Those that serve get a guest.
fn paste(commands: &[String]) {
    let shell = Shell::new();
    let mut serving = None;
    let mut guest = None;
    for command in commands {
        if command.starts_with("qemu-system-") {
            continue;
        }
        if command.contains("vfio=/dev") {
            // There may be no such device; but the options are right.
            let words = command.replace("\\\n", "");
            let args = Args::try_parse_from(words.split_whitespace()).expect("options");
            args.serve.check().expect("options");
            continue;
        }
        if is_serving(command) {
            drop((guest.take(), serving.take()));
            let _ = fs::remove_file(shell.path("iommu.sock"));
            serving = Some(shell.serve(command));
            let path = shell.path("iommu.sock");
            let options = GuestOptions {
                ram: vec![(0, 4 << 20)],
                ..GuestOptions::default()
            };
            guest = Some(Guest::connect(&path, &options));
            continue;
        }
        let output = shell.run(command);
        let text = String::from_utf8_lossy(&output.stderr);
        // Without a driver nobody asked for page requests: refused, but understood.
        let refused = command.contains("page-request") && text.contains("Unsupported");
        assert!(output.status.success() || refused, "{command}\n{text}");
    }
    drop((guest, serving));
}

#[test]
fn the_examples_of_the_help_start_as_printed() {
    let examples = examples("");
    assert_eq!(examples.len(), 6, "{examples:#?}");
    paste(&examples);
}

#[test]
fn the_examples_of_the_client_start_as_printed() {
    let serving = format!(
        "{PROGRAM} --socket-path /run/iommu.sock --endpoint 00:05.0 --control /run/iommu.ctl"
    );
    let examples = [vec![serving], examples("ctl")].concat();
    assert_eq!(examples.len(), 3, "{examples:#?}");
    paste(&examples);
}

#[test]
fn the_commands_of_the_readme_start_as_printed() {
    let readme = readme();
    let (_, block) = readme.split_once("## Use it\n\n```sh\n").expect("a block");
    let (block, _) = block.split_once("\n```").expect("its end");
    let commands = commands(block);
    assert!(commands.len() >= 6, "{commands:#?}");
    paste(&commands);
}

#[test]
fn the_command_line_for_qemu_is_whole() {
    for text in [help(""), readme()] {
        let qemu: Vec<_> = commands(&text)
            .into_iter()
            .filter(|command| command.starts_with("qemu-system-x86_64"))
            .collect();
        assert_eq!(qemu.len(), 1);
        let words = qemu[0].replace("\\\n", "");
        let words: Vec<_> = words.split_whitespace().collect();
        // QEMU refuses a NUMA node that has not all of the memory.
        assert!(words.windows(2).any(|pair| pair == ["-m", "1G"]));
        for pair in words[1..].chunks(2) {
            assert!(pair[0].starts_with('-'), "{pair:?}");
            assert!(
                pair.len() == 2 && !pair[1].ends_with([',', '.']),
                "{pair:?}"
            );
        }
    }
}
