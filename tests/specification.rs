// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The table of normative statements, `virtio-spec/conformance.md`, against the tests and against the
//! specification patches.
//!
//! A test proves the statements whose ids end its name, behind two underscores. Capitals do not matter. Statements of
//! the driver are proven by functional tests, whose guests have the driver of `guest/linux/`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The patches, in their order. Numbers of statements go on from one to the next.
const PATCHES: [&str; 2] = [
    include_str!("../virtio-spec/0001-virtio-iommu-Add-page-requests-and-PASIDs.patch"),
    include_str!("../virtio-spec/0002-virtio-iommu-Add-tables-of-the-driver.patch"),
];
const TABLE: &str = include_str!("../virtio-spec/conformance.md");

/// Where tests in Rust are.
const SOURCES: [&str; 2] = ["src", "tests"];
/// Where those in Python are.
const FUNCTIONAL: &str = "tests/functional";

/// Who a statement binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Device,
    Driver,
}

struct Row {
    side: Side,
    statement: String,
    /// Names of tests.
    proof: Vec<String>,
}

/// The rows of the table by id.
fn table() -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, side, statement, proof] = cells[..] else {
            panic!("not four cells: {line}");
        };
        let side = match side {
            "device" => Side::Device,
            "driver" => Side::Driver,
            "side" | "---" => continue,
            other => panic!("{id}: no such side: {other}"),
        };
        assert!(proof.starts_with('`'), "{id} has no test: {proof}");
        let proof = proof
            .split(' ')
            .map(|name| name.trim_matches('`').to_owned())
            .collect();
        let row = Row {
            side,
            statement: statement.to_owned(),
            proof,
        };
        assert!(
            rows.insert(id.to_owned(), row).is_none(),
            "{id} is there twice"
        );
    }
    rows
}

fn source_files(directory: &Path, wanted: &str, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            source_files(&path, wanted, files);
        } else if path
            .extension()
            .is_some_and(|extension| extension == wanted)
        {
            files.push(path);
        }
    }
}

/// The name of a test and its ids as in the table, if it has any.
fn ids_of(definition: &str) -> Option<(String, BTreeSet<String>)> {
    let name = definition.split(['(', '<']).next()?;
    let (_, ids) = name.split_once("__")?;
    Some((
        name.to_owned(),
        ids.split('_').map(str::to_lowercase).collect(),
    ))
}

/// The tests with ids, each with its ids.
fn tests_with_ids() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in SOURCES {
        source_files(&root.join(directory), "rs", &mut files);
    }
    let mut tests = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ") {
                tests.extend(ids_of(rest).filter(|_| is_test));
                is_test = false;
            } else if let Some(rest) = line.strip_prefix("pub fn ")
                && rest.ends_with("<B: Bench>() {")
            {
                // A case of `tests/host_contract`: a test for each host. What is not in the list of tests is dead code.
                tests.extend(ids_of(rest));
            }
        }
    }
    let mut files = Vec::new();
    source_files(&root.join(FUNCTIONAL), "py", &mut files);
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let definitions = text.lines().map(str::trim);
        let definitions = definitions.filter_map(|line| line.strip_prefix("def "));
        tests.extend(
            definitions
                .filter(|name| name.starts_with("test_"))
                .filter_map(ids_of),
        );
    }
    tests
}

#[test]
fn every_statement_has_a_test_and_every_named_test_exists() {
    let tests = tests_with_ids();
    for (id, row) in table() {
        for name in row.proof {
            let ids = tests
                .get(&name)
                .unwrap_or_else(|| panic!("{id}: no test {name}"));
            assert!(
                ids.contains(&id.to_lowercase()),
                "{name} does not name {id}"
            );
        }
    }
}

#[test]
fn every_id_of_a_test_is_a_statement() {
    let ids: BTreeSet<_> = table().into_keys().map(|id| id.to_lowercase()).collect();
    let tests = tests_with_ids();
    assert!(tests.len() > 50, "the sources are not where they were");
    for (name, named) in tests {
        for id in named {
            assert!(ids.contains(&id), "{name}: there is no statement {id}");
        }
    }
}

/// The numbered statements of the patches: id, side and text without markup.
fn statements_of_the_patches() -> BTreeMap<String, (Side, String)> {
    let mut statements = BTreeMap::new();
    for patch in PATCHES {
        add_statements(patch, &mut statements);
    }
    statements
}

fn add_statements(patch: &str, statements: &mut BTreeMap<String, (Side, String)>) {
    let mut side = None;
    let mut lines = patch.lines().map(|line| match line.split_at_checked(1) {
        Some((sign @ ("+" | " "), text)) if !line.starts_with("+++") => (text, sign == "+"),
        // What stands behind "@@ ... @@" names the section.
        Some(("@", text)) => (text.rsplit("@@ ").next().unwrap_or(""), false),
        _ => ("", false),
    });
    while let Some((line, is_new)) = lines.next() {
        if line.starts_with("\\devicenormative") {
            side = Some(Side::Device);
        } else if line.starts_with("\\drivernormative") {
            side = Some(Side::Driver);
        } else if let Some(id) = line.strip_prefix("% ")
            && is_new
        {
            let text: Vec<_> = lines
                .by_ref()
                .map(|(line, _)| line)
                .take_while(|line| !line.is_empty())
                .collect();
            let side = side.unwrap_or_else(|| panic!("{id}: in no normative section"));
            let known = statements.insert(id.to_owned(), (side, plain(&text.join(" "))));
            assert!(known.is_none(), "{id} is there twice");
        }
    }
}

/// LaTeX as the table has it.
fn plain(text: &str) -> String {
    let mut plain = text.replace('$', "");
    while let Some((before, rest)) = plain.split_once("\\field{") {
        let (field, after) = rest.split_once('}').expect("a closed brace");
        plain = format!("{before}`{field}`{after}");
    }
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_table_has_the_statements_of_the_patches_and_no_other() {
    let table = table();
    let patches = statements_of_the_patches();
    for (id, (side, text)) in &patches {
        assert!(is_normative(text), "{id} demands nothing");
        let row = table
            .get(id)
            .unwrap_or_else(|| panic!("{id} is not in the table"));
        assert_eq!(row.side, *side, "{id}");
        if id.starts_with('X') {
            assert_eq!(row.statement, *text, "{id}");
        }
    }
    for id in table.keys().filter(|id| id.starts_with('X')) {
        assert!(patches.contains_key(id), "{id} is in no patch");
    }
    let numbers: BTreeSet<usize> = patches
        .keys()
        .filter_map(|id| id.strip_prefix('X')?.parse().ok())
        .collect();
    assert_eq!(
        numbers,
        (1..=numbers.len()).collect(),
        "a gap in the numbers"
    );
}

fn is_normative(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric())
        .any(|word| ["MUST", "SHOULD", "MAY"].contains(&word))
}

#[test]
fn every_normative_paragraph_of_the_patches_is_numbered() {
    for patch in PATCHES {
        let added: String = patch
            .lines()
            .map(|line| match line.strip_prefix('+') {
                Some(text) if !line.starts_with("+++") => format!("{text}\n"),
                _ => "\n".to_owned(),
            })
            .collect();
        for paragraph in added.split("\n\n").map(str::trim) {
            assert!(
                !is_normative(paragraph) || paragraph.starts_with("% "),
                "no number: {paragraph}"
            );
        }
    }
}
