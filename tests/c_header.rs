// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The C header of the extension agrees with the Rust structures: sizes, offsets, numbers.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use vhost_device_iommu::spec::{
    self, AttachFlags, DetachFlags, EventFlags, Features, PageResponseCode, PageResponseFlags,
    PasidFlags, PropertyType, RequestType, TableFormat,
};

/// A C expression and the value that the Rust side has for it.
type Fact = (String, u64);

/// The facts of a structure. With `tail`, the C structure ends with the request's tail, which Rust has apart.
macro_rules! layout {
    ($facts:ident, $c:literal, $rust:ty, $($tail:ident)?: $($field:ident)*) => {
        $($facts.push((
            format!("offsetof(struct {}, {})", $c, c_name(stringify!($field))),
            offset_of!($rust, $field) as u64,
        ));)*
        #[allow(unused_mut, unused_assignments, reason = "only requests have a tail")]
        let mut size = size_of::<$rust>();
        $(
            $facts.push((format!("offsetof(struct {}, {})", $c, stringify!($tail)), size as u64));
            size += spec::TAIL_LEN;
        )?
        $facts.push((format!("sizeof(struct {})", $c), size as u64));
    };
}

/// `kind` is called `type` in C.
fn c_name(field: &str) -> &str {
    if field == "kind" { "type" } else { field }
}

fn layouts() -> Vec<Fact> {
    let mut facts = Vec::new();
    layout!(facts, "virtio_iommu_req_attach_pasid", spec::Attach, tail: head domain endpoint flags pasid);
    layout!(facts, "virtio_iommu_req_detach_pasid", spec::Detach, tail: head domain endpoint pasid flags);
    layout!(facts, "virtio_iommu_req_page_response", spec::PageResponse, tail:
        head endpoint flags pasid group_id code reserved);
    layout!(facts, "virtio_iommu_probe_page_request", spec::PageRequestProperty, : head flags max_pending);
    layout!(facts, "virtio_iommu_probe_pasid", spec::PasidProperty, : head flags width reserved);
    layout!(facts, "virtio_iommu_probe_table", spec::TableProperty, :
        head format input_bits output_bits page_size_mask flags reserved);
    layout!(facts, "virtio_iommu_req_attach_table", spec::AttachTable, tail:
        head domain endpoint flags pasid format input_bits granule table attributes reserved);
    layout!(facts, "virtio_iommu_req_invalidate", spec::Invalidate, tail: head domain virt_start virt_end flags);
    layout!(facts, "virtio_iommu_page_request", spec::Event, :
        reason reserved flags endpoint pasid address group_id reserved2 length);
    // What the extension builds on.
    layout!(facts, "virtio_iommu_req_head", spec::Head, : kind reserved);
    layout!(facts, "virtio_iommu_req_tail", spec::Tail, : status reserved);
    layout!(facts, "virtio_iommu_probe_property", spec::PropertyHead, : kind length);
    layout!(facts, "virtio_iommu_req_attach", spec::Attach, tail: head domain endpoint flags);
    layout!(facts, "virtio_iommu_req_detach", spec::Detach, tail: head domain endpoint);
    layout!(facts, "virtio_iommu_fault", spec::FaultReport, : reason reserved flags endpoint address);
    facts
}

fn numbers() -> Vec<Fact> {
    [
        (
            "1 << VIRTIO_IOMMU_F_PAGE_REQUEST",
            Features::PAGE_REQUEST.bits(),
        ),
        ("1 << VIRTIO_IOMMU_F_PASID", Features::PASID.bits()),
        (
            "1 << VIRTIO_IOMMU_F_ATTACH_TABLE",
            Features::ATTACH_TABLE.bits(),
        ),
        (
            "VIRTIO_IOMMU_T_ATTACH_TABLE",
            RequestType::AttachTable as u64,
        ),
        ("VIRTIO_IOMMU_T_INVALIDATE", RequestType::Invalidate as u64),
        (
            "VIRTIO_IOMMU_T_PAGE_RESPONSE",
            RequestType::PageResponse as u64,
        ),
        (
            "VIRTIO_IOMMU_ATTACH_F_BYPASS",
            AttachFlags::BYPASS.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_ATTACH_F_PAGE_REQUEST",
            AttachFlags::PAGE_REQUEST.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_ATTACH_F_PASID",
            AttachFlags::PASID.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_DETACH_F_PASID",
            DetachFlags::PASID.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_PROBE_T_PAGE_REQUEST",
            PropertyType::PageRequest as u64,
        ),
        ("VIRTIO_IOMMU_PROBE_T_PASID", PropertyType::Pasid as u64),
        ("VIRTIO_IOMMU_PROBE_T_TABLE", PropertyType::Table as u64),
        ("VIRTIO_IOMMU_TABLE_X86_64", TableFormat::X86_64 as u64),
        ("VIRTIO_IOMMU_TABLE_ARM64", TableFormat::Arm64 as u64),
        ("VIRTIO_IOMMU_PASID_F_EXEC", PasidFlags::EXEC.bits().into()),
        (
            "VIRTIO_IOMMU_PASID_F_PRIVILEGED",
            PasidFlags::PRIVILEGED.bits().into(),
        ),
        ("VIRTIO_IOMMU_FAULT_F_READ", EventFlags::READ.bits().into()),
        (
            "VIRTIO_IOMMU_FAULT_F_WRITE",
            EventFlags::WRITE.bits().into(),
        ),
        ("VIRTIO_IOMMU_FAULT_F_EXEC", EventFlags::EXEC.bits().into()),
        (
            "VIRTIO_IOMMU_FAULT_F_PRIVILEGED",
            EventFlags::PRIVILEGED.bits().into(),
        ),
        ("VIRTIO_IOMMU_FAULT_F_LAST", EventFlags::LAST.bits().into()),
        (
            "VIRTIO_IOMMU_FAULT_F_PAGE_REQUEST",
            EventFlags::PAGE_REQUEST.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_FAULT_F_ADDRESS",
            EventFlags::ADDRESS.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_FAULT_F_PASID",
            EventFlags::PASID.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_FAULT_F_GROUP_ID",
            EventFlags::GROUP_ID.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_PAGE_RESPONSE_F_PASID",
            PageResponseFlags::PASID.bits().into(),
        ),
        (
            "VIRTIO_IOMMU_PAGE_RESPONSE_SUCCESS",
            PageResponseCode::Success as u64,
        ),
        (
            "VIRTIO_IOMMU_PAGE_RESPONSE_INVALID_REQUEST",
            PageResponseCode::InvalidRequest as u64,
        ),
        (
            "VIRTIO_IOMMU_PAGE_RESPONSE_FAILURE",
            PageResponseCode::ResponseFailure as u64,
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// The numbers that the specification patches give.
fn defined_by_the_patches() -> Vec<(&'static str, &'static str)> {
    let patches = [
        include_str!("../virtio-spec/0001-virtio-iommu-Add-page-requests-and-PASIDs.patch"),
        include_str!("../virtio-spec/0002-virtio-iommu-Add-tables-of-the-driver.patch"),
    ];
    let mut all = Vec::new();
    for patch in patches {
        let defined: Vec<_> = patch
            .lines()
            .filter_map(|line| line.strip_prefix("+#define "))
            .filter_map(|define| define.split_once(' '))
            .collect();
        assert!(!defined.is_empty());
        all.extend(defined);
    }
    all
}

#[test]
fn the_header_and_the_structures_say_the_same() {
    let facts = [layouts(), numbers()].concat();
    let mut program = "#include <stddef.h>\n#include \"virtio_iommu_page_request.h\"\n".to_owned();
    for (expression, value) in &facts {
        writeln!(
            program,
            "_Static_assert(({expression}) == {value}, \"{expression} is not {value}\");"
        )
        .expect("a string");
    }
    for (name, value) in defined_by_the_patches() {
        writeln!(
            program,
            "_Static_assert(({name}) == {value}, \"{name} is {value} in its patch\");"
        )
        .expect("a string");
    }
    let directory = tempfile::tempdir().expect("directory");
    let source = directory.path().join("facts.c");
    std::fs::write(&source, program).expect("source");
    let output = Command::new("cc")
        .args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            "-I",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("virtio-spec"))
        .arg(&source)
        .output()
        .expect("a C compiler, cc");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// Every macro and structure of the header takes part in the comparison.
#[test]
fn the_comparison_is_complete() {
    let header = include_str!("../virtio-spec/virtio_iommu_page_request.h");
    let facts = [layouts(), numbers()].concat();
    let compared = |name: &str| {
        facts.iter().any(|(expression, _)| {
            expression
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|word| word == name)
        })
    };
    let mut structure = "";
    for line in header.lines() {
        let mut words = line.split_whitespace();
        let last = line.split_whitespace().last().unwrap_or("");
        match (words.next(), words.next()) {
            (Some("#define"), Some(name)) if name != last => assert!(compared(name), "{name}"),
            (Some("struct"), Some(name)) if last == "{" => structure = name,
            (Some("};"), _) => structure = "",
            (Some(_), Some(_)) if !structure.is_empty() && last.ends_with(';') => {
                let field = last.trim_end_matches(';').split('[').next().unwrap_or("");
                let wanted = format!("offsetof(struct {structure}, {field})");
                assert!(
                    facts.iter().any(|(expression, _)| *expression == wanted),
                    "{wanted}"
                );
            }
            _ => {}
        }
    }
}
